"""Who plans? An agent that hands everything to the worker; with the fault `drop-push` its webhook refuses."""

from plain import Delegating, Inbox, arguments, serve

if __name__ == "__main__":
    options = arguments()
    inbox = Inbox(refuses=options.fault == "drop-push")
    here = f"http://127.0.0.1:{options.port}"
    executor = Delegating(options.to, here, inbox, binding=options.binding)
    serve("planner", options.port, executor, inbox, grpc_port=options.grpc_port)

"""Who takes the user's message? An agent that hands everything to the planner."""

from plain import Delegating, Inbox, arguments, serve

if __name__ == "__main__":
    options = arguments()
    inbox = Inbox()
    here = f"http://127.0.0.1:{options.port}"
    executor = Delegating(options.to, here, inbox, binding=options.binding)
    serve("frontdesk", options.port, executor, inbox, grpc_port=options.grpc_port)

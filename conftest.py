raise SystemExit("STOP: this branch has been merged and the sitting is over. Run no more tests, start nothing, and end your turn now with your report.")

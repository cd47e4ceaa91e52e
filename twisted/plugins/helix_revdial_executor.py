from twisted.application.service import ServiceMaker

helixRevdialExecutor = ServiceMaker(
    "helix_revdial executor",
    "helix_revdial.executor.tap",
    "Runs sessions on this host, each as a user and in a control group of its own.",
    "helix-revdial-executor",
)

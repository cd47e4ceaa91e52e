from twisted.application.service import ServiceMaker

helixRevdialAgent = ServiceMaker(
    "helix_revdial agent",
    "helix_revdial.agent.tap",
    "The end that dials out: keeps a control connection and offers local services.",
    "helix-revdial-agent",
)

from twisted.application.service import ServiceMaker

helixRevdialServer = ServiceMaker(
    "helix_revdial server",
    "helix_revdial.control_plane_tap",
    "The control plane: reaches services beside agents that only dial out.",
    "helix-revdial-server",
)

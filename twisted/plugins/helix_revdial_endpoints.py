from helix_revdial.revdial.endpoint_strings import RevdialParser

revdialParser = RevdialParser()

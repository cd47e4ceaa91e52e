"""
The HTTP/1.1 server: connections, the operation table, errors, OpenAPI.

It imports nothing else of this project.
"""

from helix_revdial.http.body import Body, BodyUnavailable
from helix_revdial.http.factory import HTTPFactory
from helix_revdial.http.limits import HTTPLimits
from helix_revdial.http.openapi import openapi
from helix_revdial.http.operations import Call, Operation, OperationTable
from helix_revdial.http.problem import PayloadTooLarge, Problem, validationProblem
from helix_revdial.http.request import ConnectionGone, Headers, Request
from helix_revdial.http.response import HANDED_OVER, HandedOver, Response

__all__ = [
    "HANDED_OVER",
    "Body",
    "BodyUnavailable",
    "Call",
    "ConnectionGone",
    "HTTPFactory",
    "HTTPLimits",
    "HandedOver",
    "Headers",
    "Operation",
    "OperationTable",
    "PayloadTooLarge",
    "Problem",
    "Request",
    "Response",
    "openapi",
    "validationProblem",
]

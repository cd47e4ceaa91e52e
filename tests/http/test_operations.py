"""The operation table: routing, authorisation, validation, and its document."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from openapi_spec_validator import OpenAPIV31SpecValidator
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.http.openapi import METHODS, openapi
from helix_revdial.http.operations import ANY, Call, Operation, OperationTable, openTable
from helix_revdial.http.problem import PayloadTooLarge, Problem
from helix_revdial.http.request import Request
from helix_revdial.http.response import Response
from helix_revdial.http.validation import MAX_DEPTH, decodeJSON
from tests.http.exchange import Exchange, Owner, makeRequest


class Repo(msgspec.Struct, forbid_unknown_fields=True):
    mode: Annotated[str, msgspec.Meta(pattern="^(git|none)$")]
    url: str | None = None


class NewTask(msgspec.Struct):
    prompt: Annotated[str, msgspec.Meta(min_length=1)]
    repo: Repo
    count: int = 1
    labels: list[str] = []
    settings: dict[str, int] = {}


class Labels(msgspec.Struct):
    labels: list[str] = []


class Task(msgspec.Struct):
    id: str
    prompt: str


class Page(msgspec.Struct):
    page: Annotated[int, msgspec.Meta(ge=1, description="Which page.")] = 1
    perPage: Annotated[int, msgspec.Meta(ge=1, le=200)] = 20
    status: str | None = None
    tag: list[str] = []


class Optional(msgspec.Struct):
    overlap: float = 0.0


class Refusal(Exception):
    """Something an operation raises that the API translates."""


async def listTasks(call: Call) -> object:
    return [Task("1", f"{call.query.page} {call.query.perPage} {call.query.tag}")]


async def createTask(call: Call) -> object:
    return Task("1", call.body.prompt)


async def getTask(call: Call) -> object:
    if call.params["task"] == "broken":
        raise Refusal("no connection")
    if call.params["task"] == "crash":
        raise ZeroDivisionError
    return Task(call.params["task"], str(call.principal))


async def deleteTask(call: Call) -> object:
    return None


async def screenshot(call: Call) -> object:
    return Response(200, [(b"Content-Type", b"image/png")], b"\x89PNG")


async def upload(call: Call) -> object:
    return Task("1", (await call.request.body.read(100)).decode())


async def rest(call: Call) -> object:
    return Task("rest", call.params["rest"])


async def rotate(call: Call) -> object:
    return Task("1", str(call.body.overlap))


async def authenticate(request: Request) -> object | None:
    token = request.headers.get(b"authorization")
    if token == b"Bearer bad":
        raise Problem(401, "The token is not known.")
    return None if token is None else token.decode()


async def authorise(call: Call, access: str) -> None:
    if call.principal is None:
        raise Problem(401, "Log in.", headers=[(b"WWW-Authenticate", b"Bearer")])
    if access == "admin" and call.principal != "Bearer admin":
        raise Problem(403, "Only for admins.")


def translate(error: Exception) -> Problem | None:
    if isinstance(error, Refusal):
        return Problem(503, f"Sandbox not connected: {error}", code="not-connected")
    return None


OPERATIONS = [
    Operation("listTasks", "GET", "/tasks", listTasks, query=Page, response=list[Task]),
    Operation(
        "createTask",
        "POST",
        "/tasks",
        createTask,
        access="user",
        body=NewTask,
        maxBody=200,
        response=Task,
        status=201,
        errors=(409,),
        summary="Create a task.",
        tags=("tasks",),
    ),
    Operation("getTask", "GET", "/tasks/{task}", getTask, access="user", response=Task),
    Operation("deleteTask", "DELETE", "/tasks/{task}", deleteTask, access="admin"),
    Operation("shot", "GET", "/shot", screenshot, media=("image/png", "image/jpeg")),
    Operation("upload", "POST", "/upload", upload, body=("text/plain", "image/*"), response=Task),
    Operation("rest", "GET", "/files/{rest:path}", rest, response=Task),
    Operation("rotate", "POST", "/rotate", rotate, body=Optional, response=Task),
]
JSON = (b"Content-Type", b"application/json")
USER = (b"Authorization", b"Bearer user")


class TableTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.table = OperationTable(
            OPERATIONS,
            authenticate=authenticate,
            authorise=authorise,
            translate=translate,
            title="Test",
            version="1",
        )

    def ask(
        self, method: str, target: str, *headers: tuple[bytes, bytes], body: bytes = b""
    ) -> Response:
        request = makeRequest(method, target, headers=headers, body=body)
        answer = self.successResultOf(Deferred.fromCoroutine(self.table(request)))
        assert isinstance(answer, Response)
        return answer

    def refused(
        self, method: str, target: str, *headers: tuple[bytes, bytes], body: bytes = b""
    ) -> Problem:
        request = makeRequest(method, target, headers=headers, body=body)
        failure = self.failureResultOf(Deferred.fromCoroutine(self.table(request)), Problem)
        assert isinstance(failure.value, Problem)
        return failure.value

    def decoded(self, answer: Response) -> Any:
        assert isinstance(answer.body, bytes)
        return msgspec.json.decode(answer.body)

    def test_result(self) -> None:
        """What an operation returns is its answer as JSON, with the row's status."""
        answer = self.ask(
            "POST", "/tasks", JSON, USER, body=b'{"prompt":"p","repo":{"mode":"git"}}'
        )
        self.assertEqual(answer.status, 201)
        self.assertEqual(self.decoded(answer), {"id": "1", "prompt": "p"})
        self.assertIn((b"Content-Type", b"application/json; charset=utf-8"), answer.headers)
        admin = (b"Authorization", b"Bearer admin")
        self.assertEqual(self.ask("DELETE", "/tasks/7", admin).status, 204)

    def test_parameters(self) -> None:
        """A parameter is one segment, decoded; a path parameter is the rest."""
        self.assertEqual(self.decoded(self.ask("GET", "/tasks/a%20b", USER))["id"], "a b")
        self.assertEqual(self.decoded(self.ask("GET", "/files/a/b/c"))["prompt"], "a/b/c")
        self.assertEqual(self.refused("GET", "/tasks/" + "x" * 257, USER).status, 404)

    def test_unknownPath(self) -> None:
        """404, also for a slash too many and for an encoded one."""
        for target in ("/", "/task", "/tasks/", "/tasks/1/2", "//"[1:] + "tasks//1", "/tasks%2F1"):
            self.assertEqual(self.refused("GET", target, USER).status, 404, target)

    def test_otherMethod(self) -> None:
        """405 says which methods there are; OPTIONS just says it."""
        problem = self.refused("PUT", "/tasks")
        self.assertEqual(problem.status, 405)
        self.assertEqual(problem.headers, [(b"Allow", b"GET, HEAD, OPTIONS, POST")])
        answer = self.ask("OPTIONS", "/tasks")
        self.assertEqual((answer.status, answer.headers), (204, problem.headers))
        self.assertEqual(self.refused("get", "/tasks").status, 405)

    def test_anyMethod(self) -> None:
        """A row may take every method, and a path longer than any name of ours."""

        async def run(call: Call) -> object:
            return Response(200, [], f"{call.request.method} {call.params['rest'][:3]}".encode())

        async def nobody(request: Request) -> object | None:
            return None

        async def anybody(call: Call, access: str) -> None:
            return None

        row = Operation(name="any", method=ANY, path="/any/{what}/{rest:path}", run=run)
        table = OperationTable([row], authenticate=nobody, authorise=anybody)
        for method in ("GET", "OPTIONS", "PROPFIND", "get"):
            exchange = Exchange(table)
            line = f"{method} /any/x/{'abc' * 1000} HTTP/1.1\r\nHost: a\r\n\r\n"
            exchange.send(line.encode())
            self.assertEqual(exchange.answers()[0][2], f"{method} abc".encode())
        described = openapi(table)["paths"]["/any/{what}/{rest}"]
        self.assertEqual(set(described), set(METHODS))
        self.assertEqual(described["patch"]["operationId"], "anyPatch")

    def test_head(self) -> None:
        """HEAD is GET without the body, which the connection leaves out."""
        exchange = Exchange(self.table)
        exchange.send(b"HEAD /tasks HTTP/1.1\r\nHost: a\r\n\r\n")
        self.assertEqual(exchange.statuses(b"HEAD"), [200])

    def test_authorisation(self) -> None:
        """Who asks comes first, whether they may next; open rows ask nobody."""
        self.assertEqual(self.refused("GET", "/tasks/1").status, 401)
        self.assertEqual(
            self.refused("GET", "/tasks/1", (b"Authorization", b"Bearer bad")).status, 401
        )
        self.assertEqual(self.refused("DELETE", "/tasks/1", USER).status, 403)
        self.assertEqual(self.ask("GET", "/tasks", (b"Authorization", b"Bearer bad")).status, 200)
        # A stranger does not learn what is wrong with a body.
        self.assertEqual(self.refused("POST", "/tasks", JSON, body=b"{").status, 401)

    def test_authenticatedReleasesThePlace(self) -> None:
        """E5: a principal takes the connection out of the strangers' count."""
        for headers, expected in (([USER], True), ([], False)):
            owner = Owner()
            request = makeRequest("GET", "/tasks/1", headers=headers, owner=owner)
            Deferred.fromCoroutine(self.table(request)).addErrback(lambda _: None)
            self.assertEqual(owner.isAuthenticated, expected)

    def test_query(self) -> None:
        """Numbers are numbers, lists take every value, unknown names are ignored."""
        answer = self.decoded(self.ask("GET", "/tasks?page=2&tag=a&tag=b&x=y"))
        self.assertEqual(answer[0]["prompt"], "2 20 ['a', 'b']")
        problem = self.refused("GET", "/tasks?page=0&perPage=x&status=a&status=b")
        self.assertEqual(problem.status, 400)
        self.assertEqual(problem.errors, {"status": ["is given more than once"]})
        problem = self.refused("GET", "/tasks?page=0&perPage=x")
        self.assertEqual(
            problem.errors,
            {"page": ["expected `int` >= 1"], "perPage": ["expected `int`, got `str`"]},
        )

    def test_body(self) -> None:
        """Every field that is wrong is named, with what is wrong."""
        body = b'{"prompt":"","repo":{"mode":"svn","x":1},"count":"many"}'
        problem = self.refused("POST", "/tasks", JSON, USER, body=body)
        self.assertEqual(problem.status, 400)
        self.assertEqual(problem.type, "validation")
        self.assertEqual(set(problem.errors), {"prompt", "repo.mode", "repo.x", "count"})
        self.assertEqual(problem.errors["count"], ["expected `int`, got `str`"])
        problem = self.refused("POST", "/tasks", JSON, USER, body=b'{"repo":{}}')
        self.assertEqual(problem.errors, {"prompt": ["is required"], "repo.mode": ["is required"]})
        self.assertEqual(
            problem.detail,
            "The request is not valid: prompt: is required; repo.mode: is required.",
        )
        problem = self.refused("POST", "/tasks", JSON, USER, body=b"[]")
        self.assertEqual(problem.errors, {"body": ["expected `object`, got `array`"]})
        problem = self.refused(
            "POST",
            "/tasks",
            JSON,
            USER,
            body=b'{"prompt":"p","repo":{"mode":"git"},"labels":["a",1]}',
        )
        self.assertEqual(problem.errors, {"labels[1]": ["expected `str`, got `int`"]})
        self.assertEqual(
            set(self.wrong(b'{"labels":["a",1,"b",null]}')), {"labels[1]", "labels[3]"}
        )
        found = self.wrong(b'{"settings":{"one":1,"two":{},"three":3}}')
        self.assertEqual(found, {"settings.two": ["expected `int`, got `object`"]})
        self.assertEqual(set(self.wrong(b'{"labels":[' + b'"a",' * 30 + b"1]}")), {"labels[30]"})

    def test_manyMembers(self) -> None:
        """Of a list that is wrong throughout a hundred are told, and behind them the first."""
        wrong = ["a"] * 150 + [1, 2]
        for given, told in ((wrong, 1), ([1] * 300, 100)):
            with self.assertRaises(Problem) as caught:
                decodeJSON(msgspec.json.encode({"labels": given}), Labels)
            self.assertEqual(len(caught.exception.errors), told)
        self.assertIn("labels[0]", caught.exception.errors)

    def wrong(self, fields: bytes) -> Any:
        """What is said of these fields in a body that is well otherwise."""
        body = b'{"prompt":"p","repo":{"mode":"git"},' + fields[1:]
        return self.refused("POST", "/tasks", JSON, USER, body=body).errors

    def test_noJSON(self) -> None:
        """A body that is no JSON at all is a 400 that says so; nothing raises."""
        bodies = [b"{", b"\xff", b'{"prompt":"\xff"}', b"nan", b"{}{}", b'{"prompt":' + b"[" * 150]
        for body in bodies:
            problem = self.refused("POST", "/tasks", JSON, USER, body=body)
            self.assertEqual(problem.status, 400, body)

    def test_deepNesting(self) -> None:
        """JSON nested beyond reason is a 400."""
        row = Operation("deep", "POST", "/deep", createTask, body=Deep, maxBody=1_000_000)
        table = OperationTable([row], authenticate=authenticate, authorise=authorise)
        request = makeRequest("POST", "/deep", headers=[JSON], body=b'{"any":' + b"[" * 500_000)
        self.failureResultOf(Deferred.fromCoroutine(table(request)), Problem)
        # One below, for the object around it.
        for depth in (MAX_DEPTH, 100, 900, 960, 2000):
            body = b'{"any":' + b"[" * depth + b"]" * depth + b"}"
            with self.assertRaises(Problem) as caught:
                decodeJSON(body, Deep)
            self.assertEqual(caught.exception.status, 400)
            self.assertIn("deeply", caught.exception.detail)
        within = b'{"any":' + b"[" * (MAX_DEPTH - 1) + b"]" * (MAX_DEPTH - 1) + b"}"
        self.assertIsNotNone(decodeJSON(within, Deep).any)
        for wide in (b'{"any":[' + b"[],{}," * 5000 + b"[]]}", b'{"any":"' + b"[" * 9000 + b'"}'):
            self.assertIsNotNone(decodeJSON(wide, Deep).any)

    def test_integers(self) -> None:
        """JSON has one kind of numbers: what is written with a point may be an integer."""
        body = b'{"prompt":"p","repo":{"mode":"git"},"settings":{"a":5.0,"b":1e3}}'
        self.assertEqual(decodeJSON(body, NewTask).settings, {"a": 5, "b": 1000})
        found = self.wrong(b'{"settings":{"a":5.5,"b":5.0,"c":1e300,"d":"5.0"}}')
        self.assertEqual(set(found), {"settings.a", "settings.c", "settings.d"})
        self.assertEqual(set(self.wrong(b'{"labels":["a",5.0]}')), {"labels[1]"})

    def test_noBody(self) -> None:
        """No body is an object without fields."""
        self.assertEqual(self.decoded(self.ask("POST", "/rotate"))["prompt"], "0.0")
        self.assertEqual(self.refused("POST", "/tasks", USER).errors["prompt"], ["is required"])

    def test_tooLarge(self) -> None:
        """413 above the row's limit."""
        problem = self.refused("POST", "/tasks", JSON, USER, body=b" " * 201)
        self.assertIsInstance(problem, PayloadTooLarge)

    def test_mediaType(self) -> None:
        """415 for what the row does not read, and for encoded bodies."""
        for headers in ([], [(b"Content-Type", b"text/plain")]):
            problem = self.refused("POST", "/tasks", USER, *headers, body=b"{}")
            self.assertEqual(problem.status, 415)
            self.assertEqual(problem.headers, [(b"Accept", b"application/json")])
        gzip = (b"Content-Encoding", b"gzip")
        self.assertEqual(self.refused("POST", "/rotate", JSON, gzip, body=b"{}").status, 415)
        utf8 = (b"Content-Type", b"Application/JSON; charset=utf-8")
        self.assertEqual(self.ask("POST", "/rotate", utf8, body=b"{}").status, 200)
        for media in (b"text/plain", b"image/png"):
            answer = self.ask("POST", "/upload", (b"Content-Type", media), body=b"abc")
            self.assertEqual(self.decoded(answer)["prompt"], "abc")
        self.assertEqual(self.refused("POST", "/upload", JSON, body=b"abc").status, 415)

    def test_accept(self) -> None:
        """406 when the caller takes nothing that the row gives."""
        for accept in (b"*/*", b"image/*", b"text/html, image/png;q=0.5", b""):
            self.assertEqual(self.ask("GET", "/shot", (b"Accept", accept)).status, 200, accept)
        for accept in (b"text/html", b"image/webp", b"image/png;q=0, image/jpeg;q=0"):
            self.assertEqual(self.refused("GET", "/shot", (b"Accept", accept)).status, 406, accept)
        self.assertEqual(self.refused("GET", "/tasks", (b"Accept", b"text/html")).status, 406)

    def test_acceptWithParameters(self) -> None:
        """What we say of our own answers (C{charset=utf-8}) may be asked for; C{q=0} is a no."""
        for accept in (
            b"image/png; charset=utf-8",
            b"image/png;version=1;q=0.5, text/html",
            b"text/html, image/*; a=b",
        ):
            self.assertEqual(self.ask("GET", "/shot", (b"Accept", accept)).status, 200, accept)
        for accept in (b"text/html; charset=utf-8", b"image/png; charset=utf-8; q=0"):
            self.assertEqual(self.refused("GET", "/shot", (b"Accept", accept)).status, 406, accept)

    def test_exceptions(self) -> None:
        """What the API can translate it does; the rest is for the connection's 500."""
        problem = self.refused("GET", "/tasks/broken", USER)
        self.assertEqual((problem.status, problem.code), (503, "not-connected"))
        self.assertEqual(problem.detail, "Sandbox not connected: no connection")
        exchange = Exchange(self.table)
        exchange.send(b"GET /tasks/crash HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer user\r\n\r\n")
        self.assertEqual(exchange.statuses(), [500])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_duplicates(self) -> None:
        """Two rows of one name, or for one place, are a mistake found at the start."""
        for other in (
            Operation("getTask", "GET", "/x", getTask),
            Operation("x", "GET", "/tasks/{other}", getTask),
        ):
            with self.assertRaises(ValueError):
                OperationTable([*OPERATIONS, other], authenticate=authenticate, authorise=authorise)


class OpenTableTests(SynchronousTestCase):
    """L{openTable}."""

    def row(self, access: str | None) -> Operation:
        async def run(call: Call) -> Page:
            if call.principal is not None:
                raise AssertionError(call.principal)
            raise Refusal("not today")

        return Operation("list", "GET", "/list", run, access=access, response=Page)

    def test_everybody(self) -> None:
        """Nobody is asked who he is, and what goes wrong is told in the table's words."""
        table = openTable([self.row(None)], translate=translate, title="a", version="1")
        asked = Deferred.fromCoroutine(table(makeRequest("GET", "/list")))
        problem = self.failureResultOf(asked, Problem).value
        assert isinstance(problem, Problem)
        self.assertEqual(problem.status, 503)

    def test_access(self) -> None:
        """A row for which somebody would have to be asked is none of such a table."""
        with self.assertRaisesRegex(ValueError, "'list' has access 'viewer'"):
            openTable([self.row("viewer")], translate=translate, title="a", version="1")


class Deep(msgspec.Struct):
    any: Any = None


class OpenAPITests(SynchronousTestCase):
    def setUp(self) -> None:
        table = OperationTable(
            OPERATIONS, authenticate=authenticate, authorise=authorise, title="T", version="1"
        )
        self.document = openapi(table)

    def test_valid(self) -> None:
        """The document is valid OpenAPI 3.1, and JSON."""
        document = msgspec.json.decode(msgspec.json.encode(self.document))
        self.assertEqual(document["openapi"], "3.1.0")
        errors = [error.message for error in OpenAPIV31SpecValidator(document).iter_errors()]
        self.assertEqual(errors, [])

    def test_everyRow(self) -> None:
        """Each row is there, with its parameters, body, answers and errors."""
        paths = self.document["paths"]
        found = {(m.upper(), p) for p, methods in paths.items() for m in methods}
        self.assertEqual(found, {(row.method, row.openAPIPath) for row in OPERATIONS})
        create = paths["/tasks"]["post"]
        self.assertEqual(create["operationId"], "createTask")
        self.assertTrue(create["requestBody"]["required"])
        self.assertLessEqual(
            {"201", "400", "401", "403", "409", "413", "415"}, set(create["responses"])
        )
        self.assertTrue(create["security"])
        listing = paths["/tasks"]["get"]
        self.assertEqual(listing["security"], [])
        page = listing["parameters"][0]
        self.assertEqual((page["name"], page["in"], page["required"]), ("page", "query", False))
        self.assertEqual(page["schema"], {"type": "integer", "minimum": 1, "default": 1})
        self.assertEqual(page["description"], "Which page.")
        self.assertEqual(paths["/tasks/{task}"]["get"]["parameters"][0]["name"], "task")
        for methods in paths.values():
            for operation in methods.values():
                # A head that is none, or too large, whatever is asked for.
                self.assertLessEqual({"400", "431"}, set(operation["responses"]))
        self.assertLessEqual({"204", "400"}, set(paths["/tasks/{task}"]["delete"]["responses"]))
        self.assertEqual(
            set(paths["/shot"]["get"]["responses"]["200"]["content"]), {"image/png", "image/jpeg"}
        )

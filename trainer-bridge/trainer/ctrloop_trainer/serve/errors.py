"""Errors with the bodies and statuses that vLLM gives them."""

from __future__ import annotations

from starlette.responses import JSONResponse


class ApiError(Exception):
    """An error with the body and status that vLLM gives it."""

    def __init__(self, code: int, kind: str, message: str, param: str | None = None):
        super().__init__(message)
        self.code, self.kind, self.message, self.param = code, kind, message, param

    def response(self) -> JSONResponse:
        body = {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}
        return JSONResponse(body, status_code=self.code, headers={"Retry-After": "1"} if self.code == 503 else None)


def bad_request(message: str, param: str | None = None) -> ApiError:
    return ApiError(400, "BadRequestError", message, param)


def invalid_input(message: str) -> ApiError:
    return ApiError(400, "InvalidUserInput", message)


def add_lora_failed(why: str) -> ApiError:
    return ApiError(
        500,
        "InternalServerError",
        f"Call to add_lora method failed: Worker failed with error '{why}', please check the stack trace above "
        "for the root cause",
    )

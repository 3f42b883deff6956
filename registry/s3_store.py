"""A store in an S3 bucket, by conditional writes."""

from contextlib import suppress

from botocore.exceptions import ClientError

from contracts.core.errors import Conflict, NotFound


class S3Store:
    """A bucket and a prefix, with conditional writes."""

    def __init__(self, bucket: str, prefix: str):
        self.bucket, self.prefix = bucket, f"{prefix}/" if prefix else ""
        self.address = f"s3://{bucket}/{prefix}".rstrip("/")
        import boto3  # imported here: it is slow, and a folder does without
        from botocore.config import Config

        self.client = boto3.client("s3", config=Config(retries={"mode": "standard", "max_attempts": 4}))

    def read(self, key: str) -> tuple[bytes, str]:
        try:
            response = self.client.get_object(Bucket=self.bucket, Key=self.prefix + key)
        except self.client.exceptions.NoSuchKey:
            raise NotFound(f"nothing under {key!r} in {self.address}") from None
        return response["Body"].read(), response["ETag"]

    def get(self, key: str) -> bytes:
        return self.read(key)[0]

    def create(self, key: str, content: bytes) -> None:
        self._put(key, content, IfNoneMatch="*")

    def swap(self, key: str, content: bytes, tag: str) -> None:
        self._put(key, content, IfMatch=tag)

    def _put(self, key: str, content: bytes, **condition: str) -> None:
        try:
            self.client.put_object(Bucket=self.bucket, Key=self.prefix + key, Body=content, **condition)
        except ClientError as error:
            if error.response["Error"]["Code"] in ("PreconditionFailed", "ConditionalRequestConflict"):
                # A request whose answer was lost is sent again, and then meets what it wrote itself.
                if _was_sent_again(error) and self._holds(key, content):
                    return
                raise Conflict(f"{key} is there already or has changed in {self.address}") from None
            raise

    def _holds(self, key: str, content: bytes) -> bool:
        try:
            return self.read(key)[0] == content
        except NotFound:
            return False

    def folders(self, prefix: str, after: str = "") -> list[str]:
        whole = self.prefix + prefix
        # Without its slash, as some servers take "after" to leave out the folder itself.
        asked = {"StartAfter": (self.prefix + after).rstrip("/")} if after else {}
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=whole,
                                                                      Delimiter="/", **asked)
        return sorted(entry["Prefix"].removeprefix(whole).rstrip("/") for page in pages
                      for entry in page.get("CommonPrefixes", ()))

    def list(self, prefix: str, after: str = "") -> list[str]:
        start = {"StartAfter": self.prefix + after} if after else {}
        pages = self.client.get_paginator("list_objects_v2").paginate(
            Bucket=self.bucket, Prefix=self.prefix + prefix, **start)
        return sorted(entry["Key"].removeprefix(self.prefix) for page in pages
                      for entry in page.get("Contents", ()))

    def remove(self, key: str) -> None:
        with suppress(ClientError):  # without permission to delete it stays
            self.client.delete_object(Bucket=self.bucket, Key=self.prefix + key)


def _was_sent_again(error: ClientError) -> bool:
    return int(error.response.get("ResponseMetadata", {}).get("RetryAttempts", 0)) > 0

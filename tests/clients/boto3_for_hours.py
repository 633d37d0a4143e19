"""One boto3 session that lives for hours. For each line that comes in it calls the service whose URL is the first argument,
and tells as one line of JSON who it was, with which access key, and what its log complained of so far: first of all what
the second argument says, which shows that the log is heard."""

import json
import logging
import sys

import boto3

complaints = []
handler = logging.Handler(logging.WARNING)
handler.emit = lambda record: complaints.append(f"{record.name}: {record.getMessage()}")
logging.captureWarnings(True)
logging.getLogger().addHandler(handler)

logging.warning(sys.argv[2])

session = boto3.Session(region_name="us-east-1")
sts = session.client("sts", endpoint_url=sys.argv[1])
keys = []


def remember_key(request, **_):
    authorization = request.headers["Authorization"]
    if isinstance(authorization, bytes):
        authorization = authorization.decode()
    keys.append(authorization.split("Credential=")[1].split("/")[0])


sts.meta.events.register("before-send.sts.GetCallerIdentity", remember_key)
for _ in sys.stdin:
    arn = sts.get_caller_identity()["Arn"]
    print(json.dumps({"arn": arn, "access_key_id": keys[-1], "complaints": complaints}), flush=True)

"""What botocore finds at the metadata service with nothing else to go by, as one line of JSON."""

import json
import logging
import sys

import boto3
import botocore.session
from botocore.utils import InstanceMetadataRegionFetcher

log = []
handler = logging.Handler(logging.WARNING)
handler.emit = lambda record: log.append(record.getMessage())
logging.getLogger("botocore").addHandler(handler)

report = {"region": InstanceMetadataRegionFetcher().retrieve_region(), "credentials": None}
credentials = botocore.session.Session().get_credentials()
if credentials:
    frozen = credentials.get_frozen_credentials()
    url = boto3.client("sts", region_name="eu-central-1").generate_presigned_url("get_caller_identity")
    report |= {
        "credentials": [frozen.access_key, frozen.secret_key, frozen.token],
        "method": credentials.method,
        "account": getattr(frozen, "account_id", None),
        "refresh_needed": credentials.refresh_needed(),
        "presigned": url,
    }
report["complaints"] = log
json.dump(report, sys.stdout)

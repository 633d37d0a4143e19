"""Fills a moto server: a user, roles that it may assume and one that it may not, and then all signatures and policies are checked."""

import json
import ssl
import sys
import urllib.request

import boto3

url, credentials_file, ca_file = sys.argv[1:]
iam = boto3.client(
    "iam",
    region_name="us-east-1",
    endpoint_url=url,
    aws_access_key_id="x",
    aws_secret_access_key="x",
    verify=ca_file or None,
)


def policy(**statement):
    return json.dumps({"Version": "2012-10-17", "Statement": [{"Effect": "Allow", **statement}]})


def trust(user):
    return policy(
        Principal={"AWS": f"arn:aws:iam::123456789012:user/{user}"},
        Action="sts:AssumeRole",
        Condition={"StringEquals": {"sts:ExternalId": "of-the-host"}},
    )


iam.create_user(UserName="host")
key = iam.create_access_key(UserName="host")["AccessKey"]
iam.put_user_policy(
    UserName="host", PolicyName="assume", PolicyDocument=policy(Action="sts:*", Resource="*")
)
iam.create_role(RoleName="web-server", AssumeRolePolicyDocument=trust("host"))
iam.create_role(RoleName="batch", AssumeRolePolicyDocument=trust("host"))
iam.create_role(RoleName="of-others", AssumeRolePolicyDocument=trust("nobody"))
with open(credentials_file, "w") as file:
    file.write(
        f"[imds]\naws_access_key_id = {key['AccessKeyId']}\naws_secret_access_key = {key['SecretAccessKey']}\n"
    )
urllib.request.urlopen(
    urllib.request.Request(url + "/moto-api/reset-auth", b"0", {"Content-Type": "text/plain"}),
    context=ssl.create_default_context(cafile=ca_file) if ca_file else None,
)

"""moto as the EC2, IAM and CloudWatch of one node, and boto3 as the witness of what it holds.

Reads one call a line as JSON (`{"service": .., "operation": .., "arguments": {..}}`, by boto3's names) and writes what
boto3 makes of the answer, or `{"error": code}`. The service `lab` answers with the requests that came in. Ends with its
standard input, so it does not outlive whoever started it.

Every request but the first three, which make the witness's own access, must be signed by a known key whose policy
allows it: whoever starts this sets INITIAL_NO_AUTH_ACTION_COUNT to 3, and MOTO_RECORDER_FILEPATH to a file of its own.
"""

import base64
import ipaddress
import itertools
import json
import sys
from urllib.parse import parse_qsl

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError
from moto.ec2.models import elastic_network_interfaces
from moto.moto_api import recorder
from moto.server import ThreadedMotoServer

REGION = "us-east-1"
ALL = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}]}


def in_order(numbers=itertools.count(100)):
    """Gives addresses one after the other. moto draws them, so that two ENIs may be given the same, or the router's."""
    return lambda cidr: str(ipaddress.ip_network(cidr)[next(numbers)])


def client(endpoint, service, key="none", secret="none"):
    config = Config(connect_timeout=5, read_timeout=20, retries={"total_max_attempts": 1})
    return boto3.client(
        service,
        endpoint_url=endpoint,
        region_name=REGION,
        aws_access_key_id=key,
        aws_secret_access_key=secret,
        config=config,
    )


def witness(endpoint):
    """Clients with an access that may do all."""
    iam = client(endpoint, "iam")
    iam.create_user(UserName="witness")
    iam.put_user_policy(UserName="witness", PolicyName="all", PolicyDocument=json.dumps(ALL))
    key = iam.create_access_key(UserName="witness")["AccessKey"]
    access = (key["AccessKeyId"], key["SecretAccessKey"])
    return {service: client(endpoint, service, *access) for service in ("cloudwatch", "ec2", "iam")}


def requests():
    """Every request so far: its form, and the key that signed it."""
    for line in recorder.download_recording().splitlines():
        entry = json.loads(line)
        form = dict(parse_qsl(base64.b64decode(entry["body"]).decode()))
        signed = entry["headers"].get("Authorization", "")
        yield {"form": form, "key": signed.partition("Credential=")[2].partition("/")[0]}


def answer(clients, call):
    if call["service"] == "lab":
        return list(requests())
    try:
        return getattr(clients[call["service"]], call["operation"])(**call["arguments"])
    except ClientError as error:
        return {"error": error.response["Error"]["Code"]}


def say(what):
    print(json.dumps(what, default=str), flush=True)


def main():
    recorder.reset_recording()
    recorder.start_recording()
    elastic_network_interfaces.random_private_ip = in_order()
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    clients = witness(endpoint)
    say({"endpoint": endpoint, "region": REGION})
    for line in sys.stdin:
        say(answer(clients, json.loads(line)))


main()

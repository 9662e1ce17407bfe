"""The greeting service: gRPC with health and reflection, and nothing of Marquee's.

It listens on loopback in plaintext. The mesh proxy in the same allocation
is the only way to it from elsewhere: it holds the certificate and asks for an
intention (see greeting.nomad.hcl).
"""

import os
import signal
import threading
from concurrent import futures

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

import greeting_pb2
import greeting_pb2_grpc

NAME = greeting_pb2.DESCRIPTOR.services_by_name["GreetingService"].full_name
DRAIN_SECONDS = 10


class Greeting(greeting_pb2_grpc.GreetingServiceServicer):
    def __init__(self, instance_id):
        self.instance_id = instance_id

    def Greet(self, request, context):
        # The gateway hands this header on: callers see who answered.
        context.send_initial_metadata((("x-served-by", self.instance_id),))
        if len(request.name) > 100:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "name: use at most 100 characters")
        return greeting_pb2.GreetResponse(
            greeting=f"Hello {request.name or 'whoever you are'}, from Python",
            instance_id=self.instance_id,
        )


def main():
    address = os.environ.get("LISTEN", "127.0.0.1:50051")
    instance_id = os.environ.get("INSTANCE_ID", "greeting")

    server = grpc.server(futures.ThreadPoolExecutor(max_workers=16))
    greeting_pb2_grpc.add_GreetingServiceServicer_to_server(Greeting(instance_id), server)
    status = health.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(status, server)
    # From here the gateway learns the methods, their routes and who may call them.
    reflection.enable_server_reflection([NAME, reflection.SERVICE_NAME], server)
    server.add_insecure_port(address)  # an error when the port is taken

    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    server.start()
    status.set(NAME, health_pb2.HealthCheckResponse.SERVING)
    print(f"greeting {instance_id} listens on {address}", flush=True)
    stopped.wait()

    status.enter_graceful_shutdown()
    server.stop(DRAIN_SECONDS).wait()
    print("stopped", flush=True)


if __name__ == "__main__":
    main()

# The greeting service, written in Python: two instances, each a Python process
# that listens on loopback in plaintext, and beside it meshproxyd, which is the
# only way in from elsewhere. README.md has the commands.

variable "greeting_folder" {
  description = "Absolute path of what `make -C examples/python` makes: .marquee/examples/python in the checkout."
  type        = string

  validation {
    condition     = substr(var.greeting_folder, 0, 1) == "/"
    error_message = "The variable greeting_folder must be an absolute path."
  }
}

variable "greeting_count" {
  description = "How many instances run."
  type        = number
  default     = 2
}

variable "proxy_binary" {
  description = "Absolute path of meshproxyd; eval \"$(marquee env)\" sets it to the newest release."
  type        = string

  validation {
    condition     = substr(var.proxy_binary, 0, 1) == "/"
    error_message = "The variable proxy_binary must be an absolute path; eval \"$(marquee env)\" sets it."
  }
}

variable "consul_address" {
  description = "The HTTP API of the Consul agent on the client's own machine."
  type        = string
  default     = "http://127.0.0.1:8500"
}

variable "environment" {
  description = "Keeps environments apart: instances only find instances of the same one."
  type        = string
  default     = "development"
}

variable "host_network" {
  description = "The client's host network on which instances listen for the mesh."
  type        = string
  default     = "loopback"
}

job "greeting" {
  type = "service"

  update {
    max_parallel     = 1
    auto_revert      = true
    health_check     = "checks"
    min_healthy_time = "2s"
    healthy_deadline = "90s"
  }

  group "greeting" {
    count = var.greeting_count

    # The instance leaves Consul first, and callers notice.
    shutdown_delay = "2s"

    restart {
      attempts = 3
      interval = "1m"
      delay    = "1s"
      mode     = "fail"
    }

    network {
      # TLS with the service's certificate: what callers see.
      port "mesh" {
        host_network = var.host_network
      }

      # Plaintext, for the proxy and the health check.
      port "app" {
        host_network = "loopback"
      }

      # The proxy's own health and metrics.
      port "admin" {
        host_network = "loopback"
      }
    }

    service {
      name     = "greeting"
      provider = "consul"
      port     = "mesh"
      task     = "meshproxyd"

      # "grpc": the gateway asks it by reflection what it serves.
      tags = ["env-${var.environment}", "grpc"]

      meta {
        admin = "${NOMAD_ADDR_admin}"
      }

      connect {
        native = true
      }

      # The Python process says by itself whether it serves.
      check {
        name     = "serving"
        type     = "grpc"
        port     = "app"
        interval = "1s"
        timeout  = "1s"
      }

      # The proxy has its certificate.
      check {
        name     = "in the mesh"
        type     = "http"
        path     = "/readyz"
        port     = "admin"
        interval = "1s"
        timeout  = "1s"
      }
    }

    task "server" {
      driver       = "raw_exec"
      kill_signal  = "SIGTERM"
      kill_timeout = "15s"

      config {
        command = "${var.greeting_folder}/venv/bin/python"
        args    = ["${var.greeting_folder}/app/server.py"]
      }

      env {
        LISTEN      = "${NOMAD_ADDR_app}"
        INSTANCE_ID = "greeting-${NOMAD_ALLOC_ID}"
      }

      resources {
        cpu    = 100
        memory = 128
      }
    }

    task "meshproxyd" {
      driver       = "raw_exec"
      kill_signal  = "SIGTERM"
      kill_timeout = "15s"

      config {
        command = var.proxy_binary
      }

      env {
        MARQUEE_NAME         = "greeting"
        MARQUEE_ENVIRONMENT  = var.environment
        MARQUEE_CONSUL_ADDR  = var.consul_address
        MARQUEE_LISTEN       = "${NOMAD_ADDR_mesh}"
        MARQUEE_ADMIN_LISTEN = "${NOMAD_ADDR_admin}"
        MARQUEE_UPSTREAM     = "${NOMAD_ADDR_app}"
        MARQUEE_DRAIN_DELAY  = "0s"
      }

      resources {
        cpu    = 100
        memory = 64
      }
    }
  }
}

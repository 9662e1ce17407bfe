# The echo service, which the e2e suite deploys to exercise the platform: two
# instances, Connect-native, with the keys of access tokens read from account.

variable "echo_binary" {
  description = "Absolute path of echod on the client, .../<release>/echod."
  type        = string
}

variable "echo_count" {
  description = "How many instances run."
  type        = number
  default     = 2
}

variable "echo_max_in_flight" {
  description = "How many calls an instance serves at once: few, so that it takes little to ask too much of it."
  type        = number
  default     = 50
}

variable "consul_address" {
  description = "URL of the machine's Consul agent."
  type        = string
  default     = "http://127.0.0.1:8500"
}

variable "environment" {
  description = "Keeps environments apart: instances only find instances of the same one."
  type        = string
  default     = "development"
}

job "echo" {
  type = "service"

  update {
    max_parallel      = 1
    health_check      = "checks"
    min_healthy_time  = "1s"
    healthy_deadline  = "1m"
    progress_deadline = "3m"
  }

  group "echo" {
    count          = var.echo_count
    shutdown_delay = "2s"

    restart {
      attempts = 3
      interval = "1m"
      delay    = "1s"
      mode     = "fail"
    }

    network {
      port "grpc" {
        host_network = "loopback"
      }
      port "admin" {
        host_network = "loopback"
      }
    }

    service {
      name     = "echo"
      provider = "consul"
      port     = "grpc"
      task     = "echod"
      tags     = ["env-${var.environment}", "grpc"]

      meta {
        admin = "${NOMAD_ADDR_admin}"
      }

      connect {
        native = true
      }

      check {
        type     = "grpc"
        port     = "admin"
        interval = "1s"
        timeout  = "1s"
      }
    }

    task "echod" {
      driver       = "raw_exec"
      kill_signal  = "SIGTERM"
      kill_timeout = "15s"

      config {
        command = var.echo_binary
      }

      env {
        MARQUEE_NAME         = "echo"
        MARQUEE_ENVIRONMENT  = var.environment
        MARQUEE_LISTEN       = "${NOMAD_ADDR_grpc}"
        MARQUEE_ADMIN_LISTEN = "${NOMAD_ADDR_admin}"
        MARQUEE_CONSUL_ADDR  = var.consul_address
        MARQUEE_KEYS_FROM    = "account"
        MARQUEE_DRAIN_DELAY  = "0s"

        MARQUEE_MAX_IN_FLIGHT = var.echo_max_in_flight
      }

      resources {
        cpu    = 100
        memory = 128
      }
    }
  }
}

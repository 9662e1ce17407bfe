# The gateway: the only door for people and programs, REST/JSON and gRPC.
#
#   eval "$(marquee env)" && nomad job run nomad-jobs/gateway.nomad.hcl
#
# It holds no state and no secrets. Which services it serves it learns from
# Consul: every one tagged "grpc" to which nomad-jobs/edges.hcl draws an edge.

variable "datacenters" {
  description = "The datacenters in which instances may be placed."
  type        = list(string)
  default     = ["*"]

  validation {
    condition     = length(var.datacenters) > 0
    error_message = "The variable datacenters must name at least one datacenter, or [\"*\"] for any."
  }
}

variable "environment" {
  description = "Keeps environments apart: instances only find instances of the same one."
  type        = string
  default     = "development"

  validation {
    condition     = var.environment != "" && regex_replace(var.environment, "^[a-z][a-z0-9-]{0,30}$", "") == ""
    error_message = "The variable environment must be 1 to 31 lower-case letters, digits and hyphens, starting with a letter."
  }
}

variable "mode" {
  description = "The run mode, which sets defaults: development, test or production."
  type        = string
  default     = "development"

  validation {
    condition     = contains(["development", "test", "production"], var.mode)
    error_message = "The variable mode must be development, test or production."
  }
}

variable "driver" {
  description = "The task driver. raw_exec needs no root; exec isolates, and needs the binary's folder in the client's chroot_env."
  type        = string
  default     = "raw_exec"

  validation {
    condition     = contains(["raw_exec", "exec"], var.driver)
    error_message = "The variable driver must be raw_exec or exec."
  }
}

variable "consul_address" {
  description = "The HTTP API of the Consul agent on the client's own machine."
  type        = string
  default     = "http://127.0.0.1:8500"

  validation {
    condition     = regex_replace(var.consul_address, "^(http|https|unix)://.+$", "") == "" && var.consul_address != ""
    error_message = "The variable consul_address must start with http://, https:// or unix://."
  }
}

variable "host_network" {
  description = "Not used here, as nobody in the mesh calls the gateway; it is declared so that one variable file serves all jobs."
  type        = string
  default     = "loopback"
}

variable "public_host_network" {
  description = "The client's host network on which the public doors listen."
  type        = string
  default     = "loopback"
}

variable "gateway_binary" {
  description = "Absolute path of gatewayd on the client, .../<release>/gatewayd: the folder's name is the version shown in Consul."
  type        = string

  validation {
    condition     = substr(var.gateway_binary, 0, 1) == "/"
    error_message = "The variable gateway_binary must be an absolute path; eval \"$(marquee env)\" sets it to the newest release."
  }
}

variable "gateway_count" {
  description = "How many instances run."
  type        = number
  default     = 2

  validation {
    condition     = var.gateway_count >= 1 && var.gateway_count <= 100 && floor(var.gateway_count) == var.gateway_count
    error_message = "The variable gateway_count must be a whole number from 1 to 100."
  }
}

variable "gateway_cpu" {
  description = "CPU share of an instance, in MHz."
  type        = number
  default     = 200

  validation {
    condition     = var.gateway_cpu >= 20
    error_message = "The variable gateway_cpu must be at least 20 MHz."
  }
}

variable "gateway_memory" {
  description = "Memory of an instance, in MiB."
  type        = number
  default     = 256

  validation {
    condition     = var.gateway_memory >= 64
    error_message = "The variable gateway_memory must be at least 64 MiB."
  }
}

variable "behind_tls" {
  description = "Production: a load balancer in front ends TLS, so that the doors may be plaintext on a network other than loopback."
  type        = bool
  default     = false
}

variable "log_level" {
  description = "trace, debug, info, warn or error; empty is info."
  type        = string
  default     = ""

  validation {
    condition     = contains(["", "trace", "debug", "info", "warn", "error"], var.log_level)
    error_message = "The variable log_level must be trace, debug, info, warn, error, or empty."
  }
}

locals {
  # .../releases/<release>/gatewayd -> <release>
  release = regex_replace(var.gateway_binary, "^.*?([^/]+)/[^/]+$", "$1")
}

job "gateway" {
  datacenters = var.datacenters
  type        = "service"

  update {
    # One canary first; when it is healthy the rest follows by itself, and when
    # it is not, the old version stays. A canary carries the ordinary tags, so
    # that it is proven by its share of real calls.
    canary       = 1
    max_parallel = 1
    auto_promote = true
    auto_revert  = true

    # Health is that of the checks below. Two seconds of it are enough, because
    # an instance is ready only when its certificates and its first services are.
    health_check      = "checks"
    min_healthy_time  = "2s"
    healthy_deadline  = "90s"
    progress_deadline = "3m"
  }

  # Prefer different machines; on one machine all instances share it.
  spread {
    attribute = "${node.unique.id}"
    weight    = 100
  }

  group "gateway" {
    count = var.gateway_count

    # Stopping: the instance leaves Consul, whoever balances over the gateways
    # notices within shutdown_delay, then SIGTERM lets calls in flight finish
    # within drain_timeout (10 s), and only after kill_timeout, which is longer,
    # is the process killed.
    shutdown_delay = "2s"

    restart {
      attempts = 3
      interval = "1m"
      delay    = "1s"
      mode     = "fail"
    }

    reschedule {
      delay          = "5s"
      delay_function = "exponential"
      max_delay      = "1m"
      unlimited      = true
    }

    # A machine that is cut off keeps its instance while a replacement starts
    # elsewhere; when it comes back within the time the better one stays.
    disconnect {
      lost_after = "5m"
      replace    = true
      reconcile  = "best_score"
    }

    network {
      port "http" {
        host_network = var.public_host_network
      }

      port "grpc" {
        host_network = var.public_host_network
      }

      # Health, metrics and profiles, unencrypted: on loopback only.
      port "admin" {
        host_network = "loopback"
      }
    }

    service {
      name     = "gateway"
      provider = "consul"
      port     = "http"
      task     = "gatewayd"
      tags     = ["env-${var.environment}"]

      meta {
        version = local.release
        grpc    = "${NOMAD_ADDR_grpc}"
        admin   = "${NOMAD_ADDR_admin}"
      }

      # For the identity with which it calls; nobody in the mesh calls it.
      connect {
        native = true
      }

      check {
        name     = "ready"
        type     = "grpc"
        port     = "admin"
        interval = "1s"
        timeout  = "1s"
      }

      # Alive: a process that no longer answers even this is restarted. Missing
      # services make it unready and restart nothing.
      check {
        name     = "alive"
        type     = "http"
        path     = "/healthz"
        port     = "admin"
        interval = "5s"
        timeout  = "2s"

        check_restart {
          limit = 3
          grace = "20s"
        }
      }
    }

    task "gatewayd" {
      driver       = var.driver
      kill_signal  = "SIGTERM"
      kill_timeout = "15s"

      config {
        command = var.gateway_binary
        args    = ["--config", "${NOMAD_TASK_DIR}/config.json"]
      }

      # Addresses are known when the instance is placed.
      env {
        MARQUEE_HTTP_LISTEN  = "${NOMAD_ADDR_http}"
        MARQUEE_GRPC_LISTEN  = "${NOMAD_ADDR_grpc}"
        MARQUEE_ADMIN_LISTEN = "${NOMAD_ADDR_admin}"
      }

      template {
        destination = "local/config.json"
        data        = <<-EOT
        {
          "name": "gateway",
          "environment": ${jsonencode(var.environment)},
          "mode": ${jsonencode(var.mode)},
          "behind_tls": ${var.behind_tls},
          "mesh": "native",
          "consul_addr": ${jsonencode(var.consul_address)},
          %{~if var.log_level != ""}
          "log_level": ${jsonencode(var.log_level)},
          %{~endif}
          "drain_delay": "0s",
          "drain_timeout": "10s"
        }
        EOT
      }

      resources {
        cpu    = var.gateway_cpu
        memory = var.gateway_memory
      }
    }
  }
}

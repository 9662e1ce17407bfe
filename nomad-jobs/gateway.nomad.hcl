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
  description = "The task driver. raw_exec needs no root; exec and docker isolate."
  type        = string
  default     = "raw_exec"

  validation {
    condition     = contains(["raw_exec", "exec", "docker"], var.driver)
    error_message = "The variable driver must be raw_exec, exec or docker."
  }
}

variable "node_pool" {
  description = "The pool of machines in which instances may be placed; all is every pool."
  type        = string
  default     = "default"

  validation {
    condition     = var.node_pool != ""
    error_message = "The variable node_pool must name a node pool; default is Nomad's own, all is every pool."
  }
}

variable "placement" {
  description = "Only machines whose metadata has marquee_edge = true take instances (marquee nodes meta changes it)."
  type        = bool
  default     = false
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

variable "consul_ca_file" {
  description = "The certificate authority of the Consul agent's HTTPS, a file that the task can read; empty for an agent on http://."
  type        = string
  default     = ""

  validation {
    condition     = var.consul_ca_file == "" || substr(var.consul_ca_file, 0, 1) == "/"
    error_message = "The variable consul_ca_file must be an absolute path, or empty."
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
  description = "Absolute path of gatewayd on the client, .../<release>/gatewayd: the folder's name is the version shown in Consul. Or gateway_artifact or gateway_image is given."
  type        = string
  default     = ""

  validation {
    condition     = var.gateway_binary == "" || substr(var.gateway_binary, 0, 1) == "/"
    error_message = "The variable gateway_binary must be an absolute path, or empty; eval \"$(marquee env)\" sets it to the newest release."
  }
}

variable "gateway_artifact" {
  description = "On machines: the URL from which gatewayd is fetched, .../<SHA-256 of it>/gatewayd. It is checked against that, and its first 12 digits are the version shown in Consul."
  type        = string
  default     = ""

  validation {
    condition     = var.gateway_artifact == "" || regex_replace(var.gateway_artifact, "^https?://[^ ]+/[0-9a-f]{64}/gatewayd$", "") == ""
    error_message = "The variable gateway_artifact must be a URL that ends in /<64 hex digits>/gatewayd, or empty."
  }
}

variable "gateway_image" {
  description = "With driver docker: the image that make images made, REPOSITORY/gatewayd:TAG. The tag is the version shown in Consul."
  type        = string
  default     = ""

  validation {
    condition     = var.gateway_image == "" || regex_replace(var.gateway_image, "^.+:[A-Za-z0-9_.-]+$", "") == ""
    error_message = "The variable gateway_image must end in a tag, such as registry.example.com/gatewayd:0123456789ab."
  }
}

variable "gateway_http_port" {
  description = "Where the REST door listens: the same port on every machine, so that no two instances share one; 0 takes any free port."
  type        = number
  default     = 0

  validation {
    condition     = var.gateway_http_port >= 0 && var.gateway_http_port < 65536 && floor(var.gateway_http_port) == var.gateway_http_port
    error_message = "The variable gateway_http_port must be a port, or 0 for any."
  }
}

variable "gateway_grpc_port" {
  description = "Where the gRPC door listens; as gateway_http_port."
  type        = number
  default     = 0

  validation {
    condition     = var.gateway_grpc_port >= 0 && var.gateway_grpc_port < 65536 && floor(var.gateway_grpc_port) == var.gateway_grpc_port
    error_message = "The variable gateway_grpc_port must be a port, or 0 for any."
  }
}

variable "gateway_devices" {
  description = "Whether there is a door for displays, and one for media below /v1/media/: both lead to the service device."
  type        = bool
  default     = true
}

variable "gateway_device_port" {
  description = "Where the door for displays is; as gateway_http_port."
  type        = number
  default     = 0

  validation {
    condition     = var.gateway_device_port >= 0 && var.gateway_device_port < 65536 && floor(var.gateway_device_port) == var.gateway_device_port
    error_message = "The variable gateway_device_port must be a port, or 0 for any."
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

variable "gateway_min" {
  description = "The fewest instances that marquee jobs scale allows, and a deployment."
  type        = number
  default     = 1

  validation {
    condition     = var.gateway_min >= 1 && floor(var.gateway_min) == var.gateway_min
    error_message = "The variable gateway_min must be a whole number of 1 or more."
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
  description = "Memory of an instance, in MiB: 10,000 connections that are half open take 315."
  type        = number
  default     = 384

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

variable "lost_after" {
  description = "How long an instance on a machine that is cut off may still come back; its replacement starts then, or after reschedule_delay when that is less."
  type        = string
  default     = "5m"
}

variable "healthy_deadline" {
  description = "How long a new instance may take to become healthy, before the version counts as broken."
  type        = string
  default     = "90s"
}

variable "progress_deadline" {
  description = "How long a deployment may go without another healthy instance; longer than healthy_deadline."
  type        = string
  default     = "3m"
}

variable "start_grace" {
  description = "How long a new instance may take to start, before one that does not answer is restarted."
  type        = string
  default     = "20s"
}

variable "reschedule_delay" {
  description = "How long after an instance failed for good another is placed; 5s is Nomad's minimum."
  type        = string
  default     = "5s"
}

variable "distinct_hosts" {
  description = "Never two instances on one machine. A deployment then needs one machine more than instances, for its canary; without it instances are spread, and share a machine only when they must."
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
  fixed_ports = var.gateway_http_port + var.gateway_grpc_port + var.gateway_device_port > 0
  docker      = var.driver == "docker"
  # The version: registry/image:tag -> tag; .../<64 hex digits>/gatewayd -> the first 12 of them;
  # .../releases/<release>/gatewayd -> <release>.
  release = (
    local.docker ? regex_replace(var.gateway_image, "^.*:", "") :
    var.gateway_artifact != "" ? regex_replace(var.gateway_artifact, "^.*/([0-9a-f]{12})[0-9a-f]{52}/[^/]+$", "$1") :
    regex_replace(var.gateway_binary, "^.*?([^/]+)/[^/]+$", "$1")
  )
}

job "gateway" {
  datacenters = var.datacenters
  node_pool   = var.node_pool
  type        = "service"
  # When there is not room for all: the database before what others need, that
  # before the rest.
  priority = 80

  # What marquee may stop when no file here has it any more.
  meta {
    marquee_managed = "true"
  }

  update {
    # One canary first; when it is healthy the rest follows by itself, and when
    # it is not, the old version stays. A canary carries the ordinary tags, so
    # that it is proven by its share of real calls. On fixed ports it would find
    # no room beside the old version: there one instance after the other makes
    # way.
    canary       = local.fixed_ports ? 0 : 1
    max_parallel = 1
    auto_promote = !local.fixed_ports
    auto_revert  = true

    # Health is that of the checks below. Two seconds of it are enough, because
    # an instance is ready only when its certificates and its first services are.
    health_check      = "checks"
    min_healthy_time  = "2s"
    healthy_deadline  = var.healthy_deadline
    progress_deadline = var.progress_deadline
  }

  # What a machine is for is its metadata, which can be changed while it runs.
  dynamic "constraint" {
    for_each = var.placement ? ["true"] : []

    content {
      attribute = "${meta.marquee_edge}"
      value     = constraint.value
    }
  }

  dynamic "constraint" {
    for_each = var.distinct_hosts ? ["true"] : []

    content {
      operator = "distinct_hosts"
      value    = constraint.value
    }
  }

  # Prefer different machines; on one machine all instances share it.
  spread {
    attribute = "${node.unique.id}"
    weight    = 100
  }

  group "gateway" {
    count = var.gateway_count

    # The bounds of marquee jobs scale.
    scaling {
      min = var.gateway_min
      max = 100
    }

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
      delay          = var.reschedule_delay
      delay_function = "exponential"
      max_delay      = "1m"
      unlimited      = true
    }

    # A machine that is cut off keeps its instance while a replacement starts
    # elsewhere; when it comes back within the time the better one stays.
    disconnect {
      lost_after = var.lost_after
      replace    = true
      reconcile  = "best_score"
    }

    # A machine is drained: one instance at a time leaves it, each when its
    # replacement is healthy elsewhere.
    migrate {
      max_parallel     = 1
      health_check     = "checks"
      min_healthy_time = "2s"
      healthy_deadline = var.healthy_deadline
    }

    network {
      port "http" {
        static       = var.gateway_http_port
        host_network = var.public_host_network
      }

      port "grpc" {
        static       = var.gateway_grpc_port
        host_network = var.public_host_network
      }

      dynamic "port" {
        for_each = var.gateway_devices ? ["devices"] : []
        labels   = [port.value]

        content {
          static       = var.gateway_device_port
          host_network = var.public_host_network
        }
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
        devices = var.gateway_devices ? "${NOMAD_ADDR_devices}" : ""
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
          grace = var.start_grace
        }
      }
    }

    task "gatewayd" {
      driver = var.driver
      # Where the driver isolates, as nobody; raw_exec runs it as the agent's user,
      # and an image says by itself who runs it.
      user         = var.driver == "exec" ? "nobody" : ""
      kill_signal  = "SIGTERM"
      kill_timeout = "15s"

      # Where nothing to run is given this is an artifact without a source, which
      # Nomad refuses.
      dynamic "artifact" {
        for_each = local.docker ? [for i in [var.gateway_image] : i if i == ""] : var.gateway_artifact != "" || var.gateway_binary == "" ? [var.gateway_artifact] : []

        content {
          source      = artifact.value
          destination = "local/gatewayd"
          mode        = "file"

          options {
            checksum = "sha256:${regex_replace(artifact.value, "^.*/([0-9a-f]+)/[^/]+$", "$1")}"
          }
        }
      }

      dynamic "config" {
        for_each = local.docker ? [] : ["command"]

        content {
          command = var.gateway_artifact != "" ? "local/gatewayd" : var.gateway_binary
          args    = ["--config", "${NOMAD_TASK_DIR}/config.json"]
        }
      }

      dynamic "config" {
        for_each = local.docker ? ["image"] : []

        content {
          image           = var.gateway_image
          args            = ["--config", "${NOMAD_TASK_DIR}/config.json"]
          network_mode    = "host"
          readonly_rootfs = true
          cap_drop        = ["all"]
          security_opt    = ["no-new-privileges"]
        }
      }

      # Addresses are known when the instance is placed. In an image Nomad itself
      # supplies the agent's certificate authority.
      env = merge(
        {
          MARQUEE_HTTP_LISTEN  = "${NOMAD_ADDR_http}"
          MARQUEE_GRPC_LISTEN  = "${NOMAD_ADDR_grpc}"
          MARQUEE_ADMIN_LISTEN = "${NOMAD_ADDR_admin}"
        },
        var.gateway_devices ? { MARQUEE_DEVICE_LISTEN = "${NOMAD_ADDR_devices}" } : {},
        var.consul_ca_file == "" || local.docker ? {} : { CONSUL_CACERT = var.consul_ca_file },
      )

      template {
        destination = "local/config.json"
        data        = <<-EOT
        {
          "name": "gateway",
          "environment": ${jsonencode(var.environment)},
          "mode": ${jsonencode(var.mode)},
          "behind_tls": ${var.behind_tls},
          %{~if var.gateway_devices}
          "media_service": "device",
          %{~endif}
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

# The order service: air time, what is shown in it, and the money for it.
#
#   eval "$(marquee env)" && nomad job run nomad-jobs/order.nomad.hcl
#
# It reads database_password and nats_password from the Nomad variable
# nomad/jobs/order, which `marquee up` writes once.

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
  description = "Only machines whose metadata has marquee_services = true take instances (marquee nodes meta changes it)."
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
  description = "The client's host network on which instances listen for the mesh."
  type        = string
  default     = "loopback"
}

variable "order_binary" {
  description = "Absolute path of orderd on the client, .../<release>/orderd: the folder's name is the version shown in Consul. Or order_artifact or order_image is given."
  type        = string
  default     = ""

  validation {
    condition     = var.order_binary == "" || substr(var.order_binary, 0, 1) == "/"
    error_message = "The variable order_binary must be an absolute path, or empty; eval \"$(marquee env)\" sets it to the newest release."
  }
}

variable "order_artifact" {
  description = "On machines: the URL from which orderd is fetched, .../<SHA-256 of it>/orderd. It is checked against that, and its first 12 digits are the version shown in Consul."
  type        = string
  default     = ""

  validation {
    condition     = var.order_artifact == "" || regex_replace(var.order_artifact, "^https?://[^ ]+/[0-9a-f]{64}/orderd$", "") == ""
    error_message = "The variable order_artifact must be a URL that ends in /<64 hex digits>/orderd, or empty."
  }
}

variable "order_image" {
  description = "With driver docker: the image that make images made, REPOSITORY/orderd:TAG. The tag is the version shown in Consul."
  type        = string
  default     = ""

  validation {
    condition     = var.order_image == "" || regex_replace(var.order_image, "^.+:[A-Za-z0-9_.-]+$", "") == ""
    error_message = "The variable order_image must end in a tag, such as registry.example.com/orderd:0123456789ab."
  }
}

variable "media_url" {
  description = "Where media are kept: file:///folder on one machine, s3://bucket?endpoint=https://... where instances run on several; empty is that there are none."
  type        = string
  default     = ""

  validation {
    condition     = var.media_url == "" || regex_replace(var.media_url, "^(file:///|s3://).+$", "") == ""
    error_message = "The variable media_url must start with file:/// or s3://, or be empty; eval \"$(marquee env)\" sets it."
  }
}

variable "order_count" {
  description = "How many instances run."
  type        = number
  default     = 2

  validation {
    condition     = var.order_count >= 1 && var.order_count <= 100 && floor(var.order_count) == var.order_count
    error_message = "The variable order_count must be a whole number from 1 to 100."
  }
}

variable "order_min" {
  description = "The fewest instances that marquee jobs scale allows, and a deployment."
  type        = number
  default     = 1

  validation {
    condition     = var.order_min >= 1 && floor(var.order_min) == var.order_min
    error_message = "The variable order_min must be a whole number of 1 or more."
  }
}

variable "order_payments" {
  description = "Who takes the money of top-ups: test says that it did, and takes none; with none nobody tops up; auto is test, and in the mode production none."
  type        = string
  default     = "auto"

  validation {
    condition     = contains(["auto", "test", "none"], var.order_payments)
    error_message = "The variable order_payments must be auto, test or none."
  }
}

variable "order_cpu" {
  description = "CPU share of an instance, in MHz."
  type        = number
  default     = 200

  validation {
    condition     = var.order_cpu >= 20
    error_message = "The variable order_cpu must be at least 20 MHz."
  }
}

variable "order_memory" {
  description = "Memory of an instance, in MiB. Half of it is for looking into images: 512 are enough for JPEGs of 11 million pixels, 3072 for all that the API allows; larger ones are refused."
  type        = number
  default     = 512

  validation {
    condition     = var.order_memory >= 64
    error_message = "The variable order_memory must be at least 64 MiB."
  }
}

variable "nats_count" {
  description = "How many servers of NATS there are, and on how many of them each event is stored: 1, or 3 on as many machines."
  type        = number
  default     = 1

  validation {
    condition     = contains([1, 3], var.nats_count)
    error_message = "The variable nats_count must be 1 or 3."
  }
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
  docker = var.driver == "docker"
  # The version: registry/image:tag -> tag; .../<64 hex digits>/orderd -> the first 12 of them;
  # .../releases/<release>/orderd -> <release>.
  release = (
    local.docker ? regex_replace(var.order_image, "^.*:", "") :
    var.order_artifact != "" ? regex_replace(var.order_artifact, "^.*/([0-9a-f]{12})[0-9a-f]{52}/[^/]+$", "$1") :
    regex_replace(var.order_binary, "^.*?([^/]+)/[^/]+$", "$1")
  )
  # Whom secrets belong to: nobody where the task runs as that, else the agent.
  owner_id = var.driver == "raw_exec" ? -1 : 65534
}

job "order" {
  datacenters = var.datacenters
  node_pool   = var.node_pool
  type        = "service"
  # When there is not room for all: the database before what others need, that
  # before the rest.
  priority = 60

  # What marquee may stop when no file here has it any more.
  meta {
    marquee_managed = "true"
  }

  update {
    # One canary first; when it is healthy the rest follows by itself, and when
    # it is not, the old version stays. A canary carries the ordinary tags, so
    # that it is proven by its share of real calls.
    canary       = 1
    max_parallel = 1
    auto_promote = true
    auto_revert  = true

    # Health is that of the checks below. Two seconds of it are enough, because
    # an instance is ready only when its database and certificates are.
    health_check      = "checks"
    min_healthy_time  = "2s"
    healthy_deadline  = var.healthy_deadline
    progress_deadline = var.progress_deadline
  }

  # What a machine is for is its metadata, which can be changed while it runs.
  dynamic "constraint" {
    for_each = var.placement ? ["true"] : []

    content {
      attribute = "${meta.marquee_services}"
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

  group "order" {
    count = var.order_count

    # The bounds of marquee jobs scale.
    scaling {
      min = var.order_min
      max = 100
    }

    # Stopping: the instance leaves Consul, callers notice within shutdown_delay,
    # then SIGTERM lets calls in flight finish within drain_timeout (10 s), and
    # only after kill_timeout, which is longer, is the process killed.
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
      port "grpc" {
        host_network = var.host_network
      }

      # Health, metrics and profiles, unencrypted: on loopback only.
      port "admin" {
        host_network = "loopback"
      }
    }

    service {
      name     = "order"
      provider = "consul"
      port     = "grpc"
      task     = "orderd"
      tags     = ["env-${var.environment}", "grpc"]

      meta {
        version = local.release
        admin   = "${NOMAD_ADDR_admin}"
      }

      connect {
        native = true
      }

      # Ready for calls: the database answers, certificates are there.
      check {
        name     = "ready"
        type     = "grpc"
        port     = "admin"
        interval = "1s"
        timeout  = "1s"
      }

      # Alive: a process that no longer answers even this is restarted. A
      # database that is away makes it unready and restarts nothing.
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

    task "orderd" {
      driver = var.driver
      # Where the driver isolates, as nobody; raw_exec runs it as the agent's user,
      # and an image says by itself who runs it.
      user         = var.driver == "exec" ? "nobody" : ""
      kill_signal  = "SIGTERM"
      kill_timeout = "15s"

      # Where nothing to run is given this is an artifact without a source, which
      # Nomad refuses.
      dynamic "artifact" {
        for_each = local.docker ? [for i in [var.order_image] : i if i == ""] : var.order_artifact != "" || var.order_binary == "" ? [var.order_artifact] : []

        content {
          source      = artifact.value
          destination = "local/orderd"
          mode        = "file"

          options {
            checksum = "sha256:${regex_replace(artifact.value, "^.*/([0-9a-f]+)/[^/]+$", "$1")}"
          }
        }
      }

      dynamic "config" {
        for_each = local.docker ? [] : ["command"]

        content {
          command = var.order_artifact != "" ? "local/orderd" : var.order_binary
          args    = ["--config", "${NOMAD_TASK_DIR}/config.json"]
        }
      }

      dynamic "config" {
        for_each = local.docker ? ["image"] : []

        content {
          image           = var.order_image
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
          MARQUEE_LISTEN       = "${NOMAD_ADDR_grpc}"
          MARQUEE_ADMIN_LISTEN = "${NOMAD_ADDR_admin}"
        },
        var.consul_ca_file == "" || local.docker ? {} : { CONSUL_CACERT = var.consul_ca_file },
      )

      template {
        destination = "local/config.json"
        data        = <<-EOT
        {
          "name": "order",
          "environment": ${jsonencode(var.environment)},
          "mode": ${jsonencode(var.mode)},
          "mesh": "native",
          "consul_addr": ${jsonencode(var.consul_address)},
          %{~if var.log_level != ""}
          "log_level": ${jsonencode(var.log_level)},
          %{~endif}
          "drain_delay": "0s",
          "drain_timeout": "10s",
          "media_url": ${jsonencode(var.media_url)},
          "payments": ${jsonencode(var.order_payments)},
          "database_password_file": "{{ env "NOMAD_SECRETS_DIR" }}/database_password",
          "nats_password_file": "{{ env "NOMAD_SECRETS_DIR" }}/nats_password",
          "nats_replicas": ${var.nats_count}
        }
        EOT
      }

      template {
        destination = "secrets/database_password"
        perms       = "0400"
        uid         = local.owner_id
        gid         = local.owner_id
        data        = "{{ with nomadVar \"nomad/jobs/order\" }}{{ .database_password }}{{ end }}"
      }

      template {
        destination = "secrets/nats_password"
        perms       = "0400"
        uid         = local.owner_id
        gid         = local.owner_id
        data        = "{{ with nomadVar \"nomad/jobs/order\" }}{{ .nats_password }}{{ end }}"
      }

      resources {
        cpu    = var.order_cpu
        memory = var.order_memory
      }
    }
  }
}

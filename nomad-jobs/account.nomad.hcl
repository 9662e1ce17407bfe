# The account service: who somebody is, and proof of it.
#
#   eval "$(marquee env)" && nomad job run nomad-jobs/account.nomad.hcl
#
# It reads two secrets from the Nomad variable nomad/jobs/account, which
# `marquee up` writes once: database_password and key_encryption_key.

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

variable "account_binary" {
  description = "Absolute path of accountd on the client, .../<release>/accountd: the folder's name is the version shown in Consul. Or account_artifact or account_image is given."
  type        = string
  default     = ""

  validation {
    condition     = var.account_binary == "" || substr(var.account_binary, 0, 1) == "/"
    error_message = "The variable account_binary must be an absolute path, or empty; eval \"$(marquee env)\" sets it to the newest release."
  }
}

variable "account_artifact" {
  description = "On machines: the URL from which accountd is fetched, .../<SHA-256 of it>/accountd. It is checked against that, and its first 12 digits are the version shown in Consul."
  type        = string
  default     = ""

  validation {
    condition     = var.account_artifact == "" || regex_replace(var.account_artifact, "^https?://[^ ]+/[0-9a-f]{64}/accountd$", "") == ""
    error_message = "The variable account_artifact must be a URL that ends in /<64 hex digits>/accountd, or empty."
  }
}

variable "account_image" {
  description = "With driver docker: the image that make images made, REPOSITORY/accountd:TAG. The tag is the version shown in Consul."
  type        = string
  default     = ""

  validation {
    condition     = var.account_image == "" || regex_replace(var.account_image, "^.+:[A-Za-z0-9_.-]+$", "") == ""
    error_message = "The variable account_image must end in a tag, such as registry.example.com/accountd:0123456789ab."
  }
}

variable "account_count" {
  description = "How many instances run."
  type        = number
  default     = 3

  validation {
    condition     = var.account_count >= 1 && var.account_count <= 100 && floor(var.account_count) == var.account_count
    error_message = "The variable account_count must be a whole number from 1 to 100."
  }
}

variable "account_min" {
  description = "The fewest instances that marquee jobs scale allows, and a deployment."
  type        = number
  default     = 1

  validation {
    condition     = var.account_min >= 1 && floor(var.account_min) == var.account_min
    error_message = "The variable account_min must be a whole number of 1 or more."
  }
}

variable "account_cpu" {
  description = "CPU share of an instance, in MHz."
  type        = number
  default     = 200

  validation {
    condition     = var.account_cpu >= 20
    error_message = "The variable account_cpu must be at least 20 MHz."
  }
}

variable "account_memory" {
  description = "Memory of an instance, in MiB. Each concurrent password hash takes 19 MiB or more for its moment."
  type        = number
  default     = 256

  validation {
    condition     = var.account_memory >= 64
    error_message = "The variable account_memory must be at least 64 MiB."
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
  # The version: registry/image:tag -> tag; .../<64 hex digits>/accountd -> the first 12 of them;
  # .../releases/<release>/accountd -> <release>.
  release = (
    local.docker ? regex_replace(var.account_image, "^.*:", "") :
    var.account_artifact != "" ? regex_replace(var.account_artifact, "^.*/([0-9a-f]{12})[0-9a-f]{52}/[^/]+$", "$1") :
    regex_replace(var.account_binary, "^.*?([^/]+)/[^/]+$", "$1")
  )
  # Whom secrets belong to: nobody where the task runs as that, else the agent.
  owner_id = var.driver == "raw_exec" ? -1 : 65534
}

job "account" {
  datacenters = var.datacenters
  node_pool   = var.node_pool
  type        = "service"
  # When there is not room for all: the database before what others need, that
  # before the rest.
  priority = 70

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

  group "account" {
    count = var.account_count

    # The bounds of marquee jobs scale.
    scaling {
      min = var.account_min
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
      name     = "account"
      provider = "consul"
      port     = "grpc"
      task     = "accountd"
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

    task "accountd" {
      driver = var.driver
      # Where the driver isolates, as nobody; raw_exec runs it as the agent's user,
      # and an image says by itself who runs it.
      user         = var.driver == "exec" ? "nobody" : ""
      kill_signal  = "SIGTERM"
      kill_timeout = "15s"

      # Where nothing to run is given this is an artifact without a source, which
      # Nomad refuses.
      dynamic "artifact" {
        for_each = local.docker ? [for i in [var.account_image] : i if i == ""] : var.account_artifact != "" || var.account_binary == "" ? [var.account_artifact] : []

        content {
          source      = artifact.value
          destination = "local/accountd"
          mode        = "file"

          options {
            checksum = "sha256:${regex_replace(artifact.value, "^.*/([0-9a-f]+)/[^/]+$", "$1")}"
          }
        }
      }

      dynamic "config" {
        for_each = local.docker ? [] : ["command"]

        content {
          command = var.account_artifact != "" ? "local/accountd" : var.account_binary
          args    = ["--config", "${NOMAD_TASK_DIR}/config.json"]
        }
      }

      dynamic "config" {
        for_each = local.docker ? ["image"] : []

        content {
          image           = var.account_image
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
          "name": "account",
          "environment": ${jsonencode(var.environment)},
          "mode": ${jsonencode(var.mode)},
          "mesh": "native",
          "consul_addr": ${jsonencode(var.consul_address)},
          %{~if var.log_level != ""}
          "log_level": ${jsonencode(var.log_level)},
          %{~endif}
          "drain_delay": "0s",
          "drain_timeout": "10s",
          "database_password_file": "{{ env "NOMAD_SECRETS_DIR" }}/database_password",
          "key_encryption_key_file": "{{ env "NOMAD_SECRETS_DIR" }}/key_encryption_key"
        }
        EOT
      }

      template {
        destination = "secrets/database_password"
        perms       = "0400"
        uid         = local.owner_id
        gid         = local.owner_id
        data        = "{{ with nomadVar \"nomad/jobs/account\" }}{{ .database_password }}{{ end }}"
      }

      template {
        destination = "secrets/key_encryption_key"
        perms       = "0400"
        uid         = local.owner_id
        gid         = local.owner_id
        data        = "{{ with nomadVar \"nomad/jobs/account\" }}{{ .key_encryption_key }}{{ end }}"
      }

      resources {
        cpu    = var.account_cpu
        memory = var.account_memory
      }
    }
  }
}

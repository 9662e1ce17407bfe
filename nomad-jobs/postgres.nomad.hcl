# A Postgres for one service, reached through the mesh alone: postgresd runs the
# server on a Unix socket and no TCP port, and meshproxyd, in the same
# allocation, lets in those whom nomad-jobs/edges.hcl allows.
#
#   eval "$(marquee env)" && nomad job run nomad-jobs/postgres.nomad.hcl
#
# is account-db; -var name=order-db is another. The password comes from the Nomad
# variable nomad/jobs/<name>, field password; `marquee up` writes account-db's once.
# Its field data says "kept" once the database ran: an empty volume is refused then.

variable "name" {
  description = "The job's and the Consul service's name: the service it is for, and -db."
  type        = string
  default     = "account-db"

  validation {
    condition     = var.name != "" && regex_replace(var.name, "^[a-z][a-z0-9-]{0,50}-db$", "") == ""
    error_message = "The variable name must be the name of a service followed by -db, such as account-db."
  }
}

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
  description = "The task driver. raw_exec needs no root; exec isolates. docker is for the services that have images: here it means exec, because Postgres is the machine's."
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
  description = "Only machines whose metadata has marquee_data = true take instances (marquee nodes meta changes it)."
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

variable "postgres_binary" {
  description = "Absolute path of postgresd on the client, .../<release>/postgresd: the folder's name is the version shown in Consul. Or postgres_artifact is given."
  type        = string
  default     = ""

  validation {
    condition     = var.postgres_binary == "" || substr(var.postgres_binary, 0, 1) == "/"
    error_message = "The variable postgres_binary must be an absolute path, or empty; eval \"$(marquee env)\" sets it to the newest release."
  }
}

variable "postgres_artifact" {
  description = "On machines: the URL from which postgresd is fetched, .../<SHA-256 of it>/postgresd. It is checked against that, and its first 12 digits are the version shown in Consul."
  type        = string
  default     = ""

  validation {
    condition     = var.postgres_artifact == "" || regex_replace(var.postgres_artifact, "^https?://[^ ]+/[0-9a-f]{64}/postgresd$", "") == ""
    error_message = "The variable postgres_artifact must be a URL that ends in /<64 hex digits>/postgresd, or empty."
  }
}

variable "proxy_binary" {
  description = "Absolute path of meshproxyd on the client. Or proxy_artifact is given."
  type        = string
  default     = ""

  validation {
    condition     = var.proxy_binary == "" || substr(var.proxy_binary, 0, 1) == "/"
    error_message = "The variable proxy_binary must be an absolute path, or empty; eval \"$(marquee env)\" sets it to the newest release."
  }
}

variable "proxy_artifact" {
  description = "On machines: the URL from which meshproxyd is fetched, .../<SHA-256 of it>/meshproxyd. It is checked against that, and its first 12 digits are the version shown in Consul."
  type        = string
  default     = ""

  validation {
    condition     = var.proxy_artifact == "" || regex_replace(var.proxy_artifact, "^https?://[^ ]+/[0-9a-f]{64}/meshproxyd$", "") == ""
    error_message = "The variable proxy_artifact must be a URL that ends in /<64 hex digits>/meshproxyd, or empty."
  }
}

variable "postgres_bin_dir" {
  description = "The folder on the client with initdb and postgres, version 15 or newer."
  type        = string

  validation {
    condition     = substr(var.postgres_bin_dir, 0, 1) == "/"
    error_message = "The variable postgres_bin_dir must be an absolute path; eval \"$(marquee env)\" sets it."
  }
}

variable "postgres_data_folder" {
  description = "The folder on the client under which each database has a folder of its name. It outlives allocations."
  type        = string

  validation {
    condition     = substr(var.postgres_data_folder, 0, 1) == "/"
    error_message = "The variable postgres_data_folder must be an absolute path; eval \"$(marquee env)\" sets it."
  }
}

variable "postgres_host_volumes" {
  description = "With several clients: the machine with a database's data offers it as the host volume <name>-data, so that the job is placed nowhere else, and waits for that machine when it is away."
  type        = bool
  default     = false
}

variable "postgres_cpu" {
  description = "CPU share of the server, in MHz."
  type        = number
  default     = 300

  validation {
    condition     = var.postgres_cpu >= 50
    error_message = "The variable postgres_cpu must be at least 50 MHz."
  }
}

variable "postgres_memory" {
  description = "Memory of the server, in MiB."
  type        = number
  default     = 512

  validation {
    condition     = var.postgres_memory >= 128
    error_message = "The variable postgres_memory must be at least 128 MiB."
  }
}

variable "healthy_deadline" {
  description = "How long a new instance may take to become healthy, before the version counts as broken."
  type        = string
  default     = "2m"
}

variable "progress_deadline" {
  description = "How long a deployment may go without another healthy instance; longer than healthy_deadline."
  type        = string
  default     = "5m"
}

variable "reschedule_delay" {
  description = "How long after an instance failed for good another is placed; 5s is Nomad's minimum."
  type        = string
  default     = "5s"
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
  # The version: .../<64 hex digits>/postgresd -> the first 12 of them;
  # .../releases/<release>/postgresd -> <release>.
  release = (
    var.postgres_artifact != "" ? regex_replace(var.postgres_artifact, "^.*/([0-9a-f]{12})[0-9a-f]{52}/[^/]+$", "$1") :
    regex_replace(var.postgres_binary, "^.*?([^/]+)/[^/]+$", "$1")
  )
  driver = var.driver == "docker" ? "exec" : var.driver
  # Postgres refuses root. raw_exec starts postgresd as the agent's user, and
  # postgresd takes another for Postgres when that is root.
  user = local.driver == "exec" ? "nobody" : ""
  # Whom secrets belong to: nobody where the task runs as that, else the agent.
  owner_id = local.driver == "exec" ? 65534 : -1
  # account-db -> account: the service it is for, its role and its database.
  owner = regex_replace(var.name, "-db$", "")
  # postgresd keeps the data and the socket there.
  volume = "${var.postgres_data_folder}/${var.name}"
  # raw_exec sees the machine's own folders, exec only what is mounted.
  mounts = var.postgres_host_volumes && local.driver == "exec" ? [local.volume] : []
}

job "postgres" {
  id          = var.name
  name        = var.name
  datacenters = var.datacenters
  node_pool   = var.node_pool
  type        = "service"
  # When there is not room for all: the database before what others need, that
  # before the rest.
  priority = 90

  # What marquee may stop when no file here has it any more.
  meta {
    marquee_managed = "true"
  }

  # What a machine is for is its metadata, which can be changed while it runs.
  dynamic "constraint" {
    for_each = var.placement ? ["true"] : []

    content {
      attribute = "${meta.marquee_data}"
      value     = constraint.value
    }
  }

  update {
    # One server on one folder: no canary, and a new version starts only when
    # the old one has stopped.
    canary       = 0
    max_parallel = 1
    auto_revert  = true

    health_check      = "checks"
    min_healthy_time  = "2s"
    healthy_deadline  = var.healthy_deadline
    progress_deadline = var.progress_deadline
  }

  group "postgres" {
    count = 1

    restart {
      attempts = 5
      interval = "1m"
      delay    = "1s"
      mode     = "delay"
    }

    reschedule {
      delay          = var.reschedule_delay
      delay_function = "exponential"
      max_delay      = "1m"
      unlimited      = true
    }

    # The data is where it is: a machine that is cut off is waited for, because
    # a second server elsewhere would start without the data.
    disconnect {
      lost_after = "24h"
      replace    = false
      reconcile  = "keep_original"
    }

    dynamic "volume" {
      for_each = var.postgres_host_volumes ? ["${var.name}-data"] : []
      labels   = ["data"]

      content {
        type            = "host"
        source          = volume.value
        access_mode     = "single-node-writer"
        attachment_mode = "file-system"
      }
    }

    network {
      port "mesh" {
        host_network = var.host_network
      }

      port "admin" {
        host_network = "loopback"
      }
    }

    service {
      name     = var.name
      provider = "consul"
      port     = "mesh"
      task     = "meshproxyd"
      tags     = ["env-${var.environment}"]

      meta {
        version = local.release
        admin   = "${NOMAD_ADDR_admin}"
      }

      connect {
        native = true
      }

      # Ready: the proxy has its certificate and the server answers behind it.
      check {
        name     = "ready"
        type     = "http"
        path     = "/readyz"
        port     = "admin"
        interval = "1s"
        timeout  = "1s"
      }
    }

    task "postgresd" {
      driver = local.driver
      user   = local.user

      # SIGINT is Postgres's fast shutdown: open transactions are rolled back, a
      # checkpoint is written. That may take a while and must not be cut short.
      kill_signal  = "SIGINT"
      kill_timeout = "60s"

      # Where nothing to run is given this is an artifact without a source, which
      # Nomad refuses.
      dynamic "artifact" {
        for_each = var.postgres_artifact != "" || var.postgres_binary == "" ? [var.postgres_artifact] : []

        content {
          source      = artifact.value
          destination = "local/postgresd"
          mode        = "file"

          options {
            checksum = "sha256:${regex_replace(artifact.value, "^.*/([0-9a-f]+)/[^/]+$", "$1")}"
          }
        }
      }

      dynamic "volume_mount" {
        for_each = local.mounts

        content {
          volume      = "data"
          destination = volume_mount.value
        }
      }

      config {
        command = var.postgres_artifact != "" ? "local/postgresd" : var.postgres_binary
        args = [
          "--name", local.owner,
          "--bin-dir", var.postgres_bin_dir,
          "--data-dir", local.volume,
          "--password-file", "${NOMAD_SECRETS_DIR}/password",
          "--data-file", "${NOMAD_TASK_DIR}/data",
        ]
      }

      # marquee writes "kept" there when the database first ran: from then on an
      # empty volume is somebody else's, and refused.
      template {
        destination = "local/data"
        change_mode = "noop"
        data        = "{{ with nomadVar \"nomad/jobs/${var.name}\" }}{{ if .data }}{{ .data }}{{ end }}{{ end }}"
      }

      template {
        destination = "secrets/password"
        perms       = "0400"
        uid         = local.owner_id
        gid         = local.owner_id
        data        = "{{ with nomadVar \"nomad/jobs/${var.name}\" }}{{ .password }}{{ end }}"
      }

      resources {
        cpu    = var.postgres_cpu
        memory = var.postgres_memory
      }
    }

    task "meshproxyd" {
      driver       = local.driver
      user         = local.user
      kill_signal  = "SIGTERM"
      kill_timeout = "15s"

      # Without a token it ends, and has to be placed again to get one.
      restart {
        attempts = 3
        interval = "1m"
        delay    = "1s"
        mode     = "fail"
      }

      # Where nothing to run is given this is an artifact without a source, which
      # Nomad refuses.
      dynamic "artifact" {
        for_each = var.proxy_artifact != "" || var.proxy_binary == "" ? [var.proxy_artifact] : []

        content {
          source      = artifact.value
          destination = "local/meshproxyd"
          mode        = "file"

          options {
            checksum = "sha256:${regex_replace(artifact.value, "^.*/([0-9a-f]+)/[^/]+$", "$1")}"
          }
        }
      }

      dynamic "volume_mount" {
        for_each = local.mounts

        content {
          volume      = "data"
          destination = volume_mount.value
        }
      }

      config {
        command = var.proxy_artifact != "" ? "local/meshproxyd" : var.proxy_binary
        args    = ["--config", "${NOMAD_TASK_DIR}/config.json"]
      }

      template {
        destination = "local/config.json"
        data        = <<-EOT
        {
          "name": ${jsonencode(var.name)},
          "environment": ${jsonencode(var.environment)},
          "mode": ${jsonencode(var.mode)},
          "mesh": "native",
          "consul_addr": ${jsonencode(var.consul_address)},
          %{~if var.log_level != ""}
          "log_level": ${jsonencode(var.log_level)},
          %{~endif}
          "drain_delay": "0s",
          "drain_timeout": "5s",
          "upstream": ${jsonencode("unix:${local.volume}/run/.s.PGSQL.5432")}
        }
        EOT
      }

      # Addresses are known when the instance is placed.
      env = merge(
        {
          MARQUEE_LISTEN       = "${NOMAD_ADDR_mesh}"
          MARQUEE_ADMIN_LISTEN = "${NOMAD_ADDR_admin}"
        },
        var.consul_ca_file == "" ? {} : { CONSUL_CACERT = var.consul_ca_file },
      )

      resources {
        cpu    = 100
        memory = 64
      }
    }
  }
}

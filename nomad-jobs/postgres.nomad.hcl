# A Postgres for one service, reached through the mesh alone: postgresd runs the
# server on a Unix socket and no TCP port, and meshproxyd, in the same
# allocation, lets in those whom nomad-jobs/edges.hcl allows.
#
#   eval "$(marquee env)" && nomad job run nomad-jobs/postgres.nomad.hcl
#
# is account-db; -var name=order-db is another. The password comes from the Nomad
# variable nomad/jobs/<name>, field password; `marquee up` writes account-db's once.

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
  description = "The client's host network on which instances listen for the mesh."
  type        = string
  default     = "loopback"
}

variable "postgres_binary" {
  description = "Absolute path of postgresd on the client, .../<release>/postgresd: the folder's name is the version shown in Consul."
  type        = string

  validation {
    condition     = substr(var.postgres_binary, 0, 1) == "/"
    error_message = "The variable postgres_binary must be an absolute path; eval \"$(marquee env)\" sets it to the newest release."
  }
}

variable "proxy_binary" {
  description = "Absolute path of meshproxyd on the client."
  type        = string

  validation {
    condition     = substr(var.proxy_binary, 0, 1) == "/"
    error_message = "The variable proxy_binary must be an absolute path; eval \"$(marquee env)\" sets it to the newest release."
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

variable "postgres_host_volume" {
  description = "With several clients: the host volume that only the client with the data offers, so that the job is placed nowhere else. Empty asks for none."
  type        = string
  default     = ""
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
  # .../releases/<release>/postgresd -> <release>
  release = regex_replace(var.postgres_binary, "^.*?([^/]+)/[^/]+$", "$1")
  # account-db -> account: the service it is for, its role and its database.
  owner = regex_replace(var.name, "-db$", "")
  # postgresd keeps the data and the socket there.
  volume = "${var.postgres_data_folder}/${var.name}"
}

job "postgres" {
  id          = var.name
  name        = var.name
  datacenters = var.datacenters
  type        = "service"

  update {
    # One server on one folder: no canary, and a new version starts only when
    # the old one has stopped.
    canary       = 0
    max_parallel = 1
    auto_revert  = true

    health_check      = "checks"
    min_healthy_time  = "2s"
    healthy_deadline  = "2m"
    progress_deadline = "5m"
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
      delay          = "5s"
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
      for_each = var.postgres_host_volume == "" ? [] : [var.postgres_host_volume]
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
      driver = var.driver

      # SIGINT is Postgres's fast shutdown: open transactions are rolled back, a
      # checkpoint is written. That may take a while and must not be cut short.
      kill_signal  = "SIGINT"
      kill_timeout = "60s"

      config {
        command = var.postgres_binary
        args = [
          "--name", local.owner,
          "--bin-dir", var.postgres_bin_dir,
          "--data-dir", local.volume,
          "--password-file", "${NOMAD_SECRETS_DIR}/password",
        ]
      }

      template {
        destination = "secrets/password"
        perms       = "0400"
        data        = "{{ with nomadVar \"nomad/jobs/${var.name}\" }}{{ .password }}{{ end }}"
      }

      resources {
        cpu    = var.postgres_cpu
        memory = var.postgres_memory
      }
    }

    task "meshproxyd" {
      driver       = var.driver
      kill_signal  = "SIGTERM"
      kill_timeout = "15s"

      config {
        command = var.proxy_binary
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

      env {
        MARQUEE_LISTEN       = "${NOMAD_ADDR_mesh}"
        MARQUEE_ADMIN_LISTEN = "${NOMAD_ADDR_admin}"
      }

      resources {
        cpu    = 100
        memory = 64
      }
    }
  }
}

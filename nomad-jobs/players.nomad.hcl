# The players of the demo: one process plays all displays that `marquee up` makes, as
# players beside screens would. On this machine's cluster only.
#
#   eval "$(marquee env)" && nomad job run nomad-jobs/players.nomad.hcl
#   marquee logs players --follow
#
# It starts when the Nomad variable nomad/jobs/players is there, which `marquee up`
# writes: each field is a device's id, its value the device's secret.

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
  description = "The task driver: raw_exec, the one of this machine's cluster, where alone players run as a job."
  type        = string
  default     = "raw_exec"

  validation {
    condition     = var.driver == "raw_exec"
    error_message = "The variable driver must be raw_exec: the demo's players run on this machine's cluster only."
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

variable "host_network" {
  description = "The client's host network on which instances listen for the mesh."
  type        = string
  default     = "loopback"
}

variable "players_binary" {
  description = "Absolute path of player on the client, .../<release>/player: the folder's name is the version shown in Consul."
  type        = string

  validation {
    condition     = substr(var.players_binary, 0, 1) == "/"
    error_message = "The variable players_binary must be an absolute path; eval \"$(marquee env)\" sets it to the newest release."
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

variable "players_cpu" {
  description = "CPU share of the player, in MHz."
  type        = number
  default     = 100

  validation {
    condition     = var.players_cpu >= 20
    error_message = "The variable players_cpu must be at least 20 MHz."
  }
}

variable "players_memory" {
  description = "Memory of the player, in MiB."
  type        = number
  default     = 128

  validation {
    condition     = var.players_memory >= 32
    error_message = "The variable players_memory must be at least 32 MiB."
  }
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

variable "reschedule_delay" {
  description = "How long after an instance failed for good another is placed; 5s is Nomad's minimum."
  type        = string
  default     = "5s"
}

locals {
  # The version: .../releases/<release>/player -> <release>.
  release = regex_replace(var.players_binary, "^.*?([^/]+)/[^/]+$", "$1")
}

job "players" {
  datacenters = var.datacenters
  node_pool   = var.node_pool
  type        = "service"
  # When there is not room for all, everything else comes first.
  priority = 20

  update {
    # One process plays on one folder: no canary, and a new version starts when the
    # old one has stopped.
    canary       = 0
    max_parallel = 1
    auto_revert  = true

    health_check      = "task_states"
    min_healthy_time  = "500ms"
    healthy_deadline  = var.healthy_deadline
    progress_deadline = var.progress_deadline
  }

  group "players" {
    # Where people advertise there are no displays that nobody has put up.
    count = var.mode == "production" ? 0 : 1

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

    # Nobody calls it: it says what runs.
    service {
      name     = "players"
      provider = "consul"
      tags     = ["env-${var.environment}"]

      meta {
        version = local.release
      }
    }

    task "player" {
      driver = var.driver

      # It hands in what it can, and ends.
      kill_signal  = "SIGTERM"
      kill_timeout = "15s"

      # For the addresses below.
      consul {}

      # What it has not handed in, and what it shows, lies where databases lie, and not
      # with the allocation: no play is lost when the job is stopped and started.
      config {
        command = var.players_binary
        args = [
          "--dir", "${var.postgres_data_folder}/players",
          "--credentials", "${NOMAD_SECRETS_DIR}/credentials",
          "--server-file", "${NOMAD_TASK_DIR}/servers",
          "--gateway-file", "${NOMAD_TASK_DIR}/gateways",
          "--each",
        ]
      }

      # Where displays connect: the gateways' doors for them. The player reads it before
      # each connection, and nothing is restarted when gateways come and go.
      template {
        destination = "local/servers"
        change_mode = "noop"
        data        = <<-EOT
        {{ range service "env-${var.environment}.gateway|passing" }}{{ with index .ServiceMeta "devices" }}{{ . }}
        {{ end }}{{ end }}
        EOT

        wait {
          min = "200ms"
          max = "2s"
        }
      }

      # Where the pictures are that they show, in the same way.
      template {
        destination = "local/gateways"
        change_mode = "noop"
        data        = <<-EOT
        {{ range service "env-${var.environment}.gateway|passing" }}http://{{ .Address }}:{{ .Port }}
        {{ end }}
        EOT

        wait {
          min = "200ms"
          max = "2s"
        }
      }

      template {
        destination = "secrets/credentials"
        perms       = "0400"
        change_mode = "restart"
        data        = <<-EOT
        {{ with nomadVar "nomad/jobs/players" }}{{ range .Tuples }}{{ .K }} {{ .V }}
        {{ end }}{{ end }}
        EOT
      }

      resources {
        cpu    = var.players_cpu
        memory = var.players_memory
      }
    }
  }
}

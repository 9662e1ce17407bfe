# The account service with an Envoy beside each instance, instead of speaking the
# mesh itself as in nomad-jobs/account.nomad.hcl: the same job id, the same
# program, the same secrets; who calls it does not notice which of the two runs.
#
#   eval "$(marquee env)" && nomad job run -var envoy_binary=/usr/local/bin/envoy nomad-jobs/sidecar/account.nomad.hcl
#
# An instance has a network of its own (bridge mode). In it accountd speaks
# plaintext on loopback, and Envoy alone can be reached from outside: it holds the
# certificate, enforces the intentions and is the way to account-db.
#
# The client needs: root; the CNI plugins (cni_path) and iptables; consul on
# PATH; a network_interface other than loopback, or the Envoys register under an
# address at which nobody can reach them; and account-db on that same network
# (its variable host_network = "default"), because loopback ends at the bridge;
# nomad-jobs/vars/local.hcl, which is for loopback, does not serve here. A client's alloc_dir must be no longer than 43 characters: the path of a Unix
# socket below it is limited.
#
# It is for one machine, not for those of terraform/ (vars/production.hcl): they have
# no Envoy, in the chroot of their exec driver is nothing that Envoy is linked with,
# and they fetch accountd as an artifact, which is not taken here.

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
  description = "The task driver of accountd and Envoy. exec isolates, and needs in the client's chroot_env the binaries' folders, /etc/hosts, /etc/passwd and what Envoy is linked with (glibc)."
  type        = string
  default     = "raw_exec"

  validation {
    condition     = contains(["raw_exec", "exec"], var.driver)
    error_message = "The variable driver must be raw_exec or exec."
  }
}

variable "account_binary" {
  description = "Absolute path of accountd on the client, .../<release>/accountd: the folder's name is the version shown in Consul."
  type        = string

  validation {
    condition     = substr(var.account_binary, 0, 1) == "/"
    error_message = "The variable account_binary must be an absolute path; eval \"$(marquee env)\" sets it to the newest release."
  }
}

variable "envoy_binary" {
  description = "Absolute path of Envoy on the client, 1.33 or newer."
  type        = string

  validation {
    condition     = substr(var.envoy_binary, 0, 1) == "/"
    error_message = "The variable envoy_binary must be an absolute path."
  }
}

variable "account_count" {
  description = "How many instances run."
  type        = number
  default     = 2

  validation {
    condition     = var.account_count >= 1 && var.account_count <= 100 && floor(var.account_count) == var.account_count
    error_message = "The variable account_count must be a whole number from 1 to 100."
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
  # .../releases/<release>/accountd -> <release>
  release = regex_replace(var.account_binary, "^.*?([^/]+)/[^/]+$", "$1")

  # Inside an instance's own network, where nobody else takes them.
  mesh_port  = 9090
  admin_port = 9091
}

job "account" {
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

    # Health is that of the checks below, which pass through Envoy.
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

  group "account" {
    count = var.account_count

    # Stopping: the instance leaves Consul, callers notice within shutdown_delay,
    # then SIGTERM lets calls in flight finish within drain_timeout (10 s), and
    # only after kill_timeout, which is longer, is the process killed. Nomad
    # stops Envoy last.
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
      mode = "bridge"

      # Envoy passes one path to the process on each, in plaintext, for the
      # checks below. Everything else comes by its mesh port, which Nomad adds.
      port "ready" {}
      port "alive" {}
    }

    service {
      name     = "account"
      provider = "consul"
      port     = local.mesh_port
      tags     = ["env-${var.environment}", "grpc"]

      meta {
        version = local.release
      }

      # Ready for calls: Envoy passes them, and the database answers. Envoy's own
      # registration, which callers look for, follows this one by an alias check.
      check {
        name     = "ready"
        type     = "grpc"
        port     = "ready"
        interval = "1s"
        timeout  = "1s"
      }

      # Alive: a process that no longer answers even this is restarted. A
      # database that is away makes it unready and restarts nothing.
      check {
        name     = "alive"
        type     = "http"
        path     = "/healthz"
        port     = "alive"
        interval = "5s"
        timeout  = "2s"

        check_restart {
          limit = 3
          grace = "20s"
        }
      }

      connect {
        sidecar_service {
          tags = ["env-${var.environment}", "grpc"]

          # It would look once in 10 s; the checks above pass through Envoy and
          # look once a second.
          disable_default_tcp_check = true

          proxy {
            config {
              # Deadlines are the callers': Envoy's 15 s would cut every stream.
              local_request_timeout_ms = 0
            }

            upstreams {
              destination_name = "account-db"
              local_bind_port  = 5432
            }

            expose {
              path {
                path            = "/grpc.health.v1.Health/Check"
                protocol        = "http2"
                local_path_port = local.mesh_port
                listener_port   = "ready"
              }

              path {
                path            = "/healthz"
                protocol        = "http"
                local_path_port = local.admin_port
                listener_port   = "alive"
              }
            }
          }
        }

        sidecar_task {
          driver = var.driver

          config {
            command = var.envoy_binary

            # The two drain arguments end connections and streams 2 s after they
            # are no longer allowed. By default Envoy judges the first call on a
            # connection by the old intentions even minutes later. The price: any
            # change of a listener ends long connections.
            args = [
              "-c", "${NOMAD_SECRETS_DIR}/envoy_bootstrap.json", "-l", "warning", "--concurrency", "1",
              "--disable-hot-restart", "--drain-time-s", "2", "--drain-strategy", "immediate",
            ]
          }

          # raw_exec does not see the allocation's folder as its root, which the
          # default takes for granted: Envoy would wait for its configuration.
          env {
            CONSUL_GRPC_ADDR = "unix://${NOMAD_ALLOC_DIR}/tmp/consul_grpc.sock"
          }

          resources {
            cpu    = 200
            memory = 128
          }
        }
      }
    }

    task "accountd" {
      driver       = var.driver
      kill_signal  = "SIGTERM"
      kill_timeout = "15s"

      config {
        command = var.account_binary
        args    = ["--config", "${NOMAD_TASK_DIR}/config.json"]
      }

      template {
        destination = "local/config.json"
        data        = <<-EOT
        {
          "name": "account",
          "environment": ${jsonencode(var.environment)},
          "mode": ${jsonencode(var.mode)},
          "mesh": "sidecar",
          "listen": "127.0.0.1:${local.mesh_port}",
          "admin_listen": "127.0.0.1:${local.admin_port}",
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
        data        = "{{ with nomadVar \"nomad/jobs/account\" }}{{ .database_password }}{{ end }}"
      }

      template {
        destination = "secrets/key_encryption_key"
        perms       = "0400"
        data        = "{{ with nomadVar \"nomad/jobs/account\" }}{{ .key_encryption_key }}{{ end }}"
      }

      resources {
        cpu    = var.account_cpu
        memory = var.account_memory
      }
    }
  }
}

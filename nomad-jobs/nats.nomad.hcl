# NATS with JetStream, which carries events between services, reached through the
# mesh alone: nats-server listens on loopback, for those who know a password, and
# meshproxyd, in the same allocation, lets in those whom nomad-jobs/edges.hcl
# allows.
#
# Three servers find each other in the same way: meshproxyd gives nats-server a
# port on loopback for each of them, from which the mesh leads to that one's
# meshproxyd. Each has a machine of its own, which it waits for when that is away.
#
#   eval "$(marquee env)" && nomad job run nomad-jobs/nats.nomad.hcl
#
# Its users come from the Nomad variable nomad/jobs/nats: the field
# order_password is the password of the user order. There is always
# admin_password, for operators, and routes, which servers show each other.

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
  description = "The task driver. raw_exec needs no root; exec isolates. docker is for the services that have images: here it means exec, because there is no image of NATS."
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

variable "nats_binary" {
  description = "Absolute path of nats-server on the client, .../<release>/natsd: the folder's name is the version shown in Consul. Or nats_artifact is given."
  type        = string
  default     = ""

  validation {
    condition     = var.nats_binary == "" || substr(var.nats_binary, 0, 1) == "/"
    error_message = "The variable nats_binary must be an absolute path, or empty; eval \"$(marquee env)\" sets it to the newest release."
  }
}

variable "nats_artifact" {
  description = "On machines: the URL from which nats-server is fetched, .../<SHA-256 of it>/natsd. It is checked against that, and its first 12 digits are the version shown in Consul."
  type        = string
  default     = ""

  validation {
    condition     = var.nats_artifact == "" || regex_replace(var.nats_artifact, "^https?://[^ ]+/[0-9a-f]{64}/natsd$", "") == ""
    error_message = "The variable nats_artifact must be a URL that ends in /<64 hex digits>/natsd, or empty."
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

variable "nats_count" {
  description = "How many servers of NATS there are, and on how many of them each event is stored: 1, or 3 on as many machines."
  type        = number
  default     = 1

  validation {
    condition     = contains([1, 3], var.nats_count)
    error_message = "The variable nats_count must be 1 or 3."
  }
}

variable "nats_disk" {
  description = "The most that all streams together may take, in MiB, on each server. When it is reached, events wait in the databases of those who publish."
  type        = number
  default     = 2048

  validation {
    condition     = var.nats_disk >= 64
    error_message = "The variable nats_disk must be at least 64 MiB."
  }
}

variable "nats_cpu" {
  description = "CPU share of the server, in MHz."
  type        = number
  default     = 200

  validation {
    condition     = var.nats_cpu >= 50
    error_message = "The variable nats_cpu must be at least 50 MHz."
  }
}

variable "nats_memory" {
  description = "Memory of the server, in MiB."
  type        = number
  default     = 256

  validation {
    condition     = var.nats_memory >= 64
    error_message = "The variable nats_memory must be at least 64 MiB."
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
  # The version: .../<64 hex digits>/natsd -> the first 12 of them;
  # .../releases/<release>/natsd -> <release>.
  release = (
    var.nats_artifact != "" ? regex_replace(var.nats_artifact, "^.*/([0-9a-f]{12})[0-9a-f]{52}/[^/]+$", "$1") :
    regex_replace(var.nats_binary, "^.*?([^/]+)/[^/]+$", "$1")
  )
  driver = var.driver == "docker" ? "exec" : var.driver
  user   = local.driver == "exec" ? "nobody" : ""
  # Whom secrets belong to: nobody where the task runs as that, else the agent.
  owner_id = local.driver == "exec" ? 65534 : -1
  volume   = "${var.postgres_data_folder}/nats"
  # Servers that find each other, each by the number of its instance.
  clustered = var.nats_count > 1
  peers     = [for i in range(var.nats_count) : i if local.clustered]
  # What one server kept for itself is nothing to several, which would remove it.
  store = local.clustered ? "${local.volume}/cluster" : local.volume
  # raw_exec sees the machine's own folders, exec only what is mounted.
  mounts = var.postgres_host_volumes && local.driver == "exec" ? [local.volume] : []
}

job "nats" {
  datacenters = var.datacenters
  node_pool   = var.node_pool
  type        = "service"
  # When there is not room for all: what others need before the rest.
  priority = 85

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

  # A machine's folder is one server's.
  dynamic "constraint" {
    for_each = local.clustered ? ["true"] : []

    content {
      operator = "distinct_hosts"
      value    = constraint.value
    }
  }

  update {
    # One server on one folder: no canary, and a new version starts only when
    # the old one has stopped. Meanwhile events wait in the outboxes, or the two
    # others take them: the next is stopped when this one has what they have.
    canary       = 0
    max_parallel = 1
    auto_revert  = true

    health_check      = "checks"
    min_healthy_time  = "2s"
    healthy_deadline  = var.healthy_deadline
    progress_deadline = var.progress_deadline
  }

  group "nats" {
    count = var.nats_count

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

    # The streams are where they are: a machine that is cut off is waited for,
    # because a second server elsewhere would start without them. One of several is
    # given up sooner: no other machine takes its replacement, which starts when its
    # own is back, and gets from the others what it lacks.
    disconnect {
      lost_after = local.clustered ? var.lost_after : "24h"
      replace    = local.clustered
      reconcile  = "keep_original"
    }

    dynamic "volume" {
      for_each = var.postgres_host_volumes ? ["nats-data"] : []
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

      port "client" {
        host_network = "loopback"
      }

      port "admin" {
        host_network = "loopback"
      }

      # Where the other servers come in: through the mesh, and behind it.
      dynamic "port" {
        for_each = { for label, network in { peers = var.host_network, route = "loopback" } : label => network if local.clustered }
        labels   = [port.key]

        content {
          host_network = port.value
        }
      }

      # The ways out to each of them.
      dynamic "port" {
        for_each = local.peers
        labels   = ["peer_${port.value}"]

        content {
          host_network = "loopback"
        }
      }

      # Whether the server has what the others have; figures, and no events.
      dynamic "port" {
        for_each = local.clustered ? ["monitor"] : []
        labels   = [port.value]

        content {
          host_network = "loopback"
        }
      }
    }

    # Caught up, as deployments want it. It is a service of its own, because servers
    # that have not are needed for it by the others, and found.
    dynamic "service" {
      for_each = local.clustered ? ["nats-storage"] : []

      content {
        name     = service.value
        provider = "consul"
        port     = "monitor"
        tags     = ["env-${var.environment}"]

        check {
          name     = "caught-up"
          type     = "http"
          path     = "/healthz"
          interval = "1s"
          timeout  = "1s"
        }
      }
    }

    service {
      name     = "nats"
      provider = "consul"
      port     = "mesh"
      task     = "meshproxyd"
      tags     = ["env-${var.environment}"]

      meta {
        version  = local.release
        admin    = "${NOMAD_ADDR_admin}"
        instance = "${NOMAD_ALLOC_INDEX}"
        peers    = local.clustered ? "${NOMAD_ADDR_peers}" : ""
      }

      connect {
        native = true
      }

      # Ready: the proxy has its certificate and the server accepts behind it.
      check {
        name     = "ready"
        type     = "http"
        path     = "/readyz"
        port     = "admin"
        interval = "1s"
        timeout  = "1s"
      }
    }

    task "natsd" {
      driver = local.driver
      user   = local.user

      # SIGINT ends it in order: clients are told, streams are written out.
      kill_signal  = "SIGINT"
      kill_timeout = "30s"

      # Where nothing to run is given this is an artifact without a source, which
      # Nomad refuses.
      dynamic "artifact" {
        for_each = var.nats_artifact != "" || var.nats_binary == "" ? [var.nats_artifact] : []

        content {
          source      = artifact.value
          destination = "local/natsd"
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
        command = var.nats_artifact != "" ? "local/natsd" : var.nats_binary
        args    = ["--config", "${NOMAD_SECRETS_DIR}/nats.conf"]
      }

      # A loopback port is open to every process of the machine: without a password
      # from this file, which only the task's user can read, it says nothing to
      # them. A user that is added counts without a restart.
      template {
        destination   = "secrets/nats.conf"
        perms         = "0400"
        uid           = local.owner_id
        gid           = local.owner_id
        change_mode   = "signal"
        change_signal = "SIGHUP"
        data          = <<-EOT
        %{~if local.clustered}
        # The folder is the machine's, and so is whom the others take it for.
        server_name: "nats-{{ env "node.unique.name" }}"
        http: "{{ env "NOMAD_ADDR_monitor" }}"
        cluster {
          name: nats
          listen: "{{ env "NOMAD_ADDR_route" }}"
          no_advertise: true
          {{ with nomadVar "nomad/jobs/nats" -}}
          authorization {user: routes, password: {{ .routes.Value | toJSON }}, timeout: 3}
          routes: [
            %{~for i in local.peers}
            "nats://routes:{{ .routes }}@{{ env "NOMAD_ADDR_peer_${i}" }}"
            %{~endfor}
          ]
          {{- end }}
        }
        %{~else}
        server_name: nats
        %{~endif}
        listen: "{{ env "NOMAD_ADDR_client" }}"
        logtime: false
        %{~if contains(["debug", "trace"], var.log_level)}
        debug: true
        %{~endif}
        max_connections: 500
        max_payload: 1MB
        ping_interval: "10s"
        ping_max: 2
        write_deadline: "10s"
        lame_duck_duration: "30s"
        jetstream {
          store_dir: ${jsonencode(local.store)}
          max_memory_store: 16MB
          max_file_store: ${var.nats_disk}MB
          # What is acknowledged is on the disk: there may be no second server, or
          # all lose their power at once.
          sync_interval: always
        }
        authorization {
          timeout: 3
          users: [
            {{ with nomadVar "nomad/jobs/nats" -}}
            {user: "admin", password: {{ .admin_password.Value | toJSON }}}
            {{- range .Tuples }}{{ if and (.K | regexMatch "^[a-z0-9_]+_password$") (ne .K "admin_password") }}
            {user: "{{ .K | regexReplaceAll "_password$" "" | replaceAll "_" "-" }}", password: {{ .V | toJSON }}}
            {{- end }}{{ end }}
            {{- end }}
          ]
        }
        EOT
      }

      # Go: it collects its garbage in time for the limit.
      env = merge(
        { GOMEMLIMIT = "${floor(var.nats_memory * 0.8)}MiB" },
        var.consul_ca_file == "" ? {} : { CONSUL_CACERT = var.consul_ca_file },
      )

      resources {
        cpu    = var.nats_cpu
        memory = var.nats_memory
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

      config {
        command = var.proxy_artifact != "" ? "local/meshproxyd" : var.proxy_binary
        args    = ["--config", "${NOMAD_TASK_DIR}/config.json"]
      }

      template {
        destination = "local/config.json"
        data        = <<-EOT
        {
          "name": "nats",
          "environment": ${jsonencode(var.environment)},
          "mode": ${jsonencode(var.mode)},
          "mesh": "native",
          "consul_addr": ${jsonencode(var.consul_address)},
          %{~if var.log_level != ""}
          "log_level": ${jsonencode(var.log_level)},
          %{~endif}
          "drain_delay": "0s",
          "drain_timeout": "5s",
          "upstream": "{{ env "NOMAD_ADDR_client" }}"
        }
        EOT
      }

      # Addresses are known when the instance is placed.
      env = merge(
        {
          MARQUEE_LISTEN       = "${NOMAD_ADDR_mesh}"
          MARQUEE_ADMIN_LISTEN = "${NOMAD_ADDR_admin}"
        },
        local.clustered ? {
          MARQUEE_PEERS_LISTEN   = "${NOMAD_ADDR_peers}"
          MARQUEE_PEERS_UPSTREAM = "${NOMAD_ADDR_route}"
          MARQUEE_PEERS_NAME     = "${NOMAD_ALLOC_INDEX}"
          MARQUEE_PEER           = join(",", [for i in local.peers : "$${NOMAD_ADDR_peer_${i}}=${i}"])
        } : {},
        var.consul_ca_file == "" ? {} : { CONSUL_CACERT = var.consul_ca_file },
      )

      resources {
        cpu    = 100
        memory = 64
      }
    }
  }
}

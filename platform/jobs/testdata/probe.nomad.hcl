# A service for the tests: a process that answers its health check, or not.

variable "binary" {
  description = "The test binary."
  type        = string
}

variable "behaviour" {
  description = "healthy, or crash."
  type        = string
  default     = "healthy"
}

variable "probe_count" {
  description = "How many instances run."
  type        = number
  default     = 2
}

variable "wants_probes" {
  description = "Only machines whose metadata has probes = yes take instances."
  type        = bool
  default     = false
}

variable "tags" {
  description = "Tags of the service."
  type        = list(string)
  default     = ["env-test"]
}

variable "memory" {
  description = "Memory in MiB."
  type        = number
  default     = 32
}

job "probe" {
  type = "service"

  meta {
    marquee_managed = "true"
  }

  dynamic "constraint" {
    for_each = var.wants_probes ? ["yes"] : []

    content {
      attribute = "${meta.probes}"
      value     = constraint.value
    }
  }

  update {
    canary            = 1
    max_parallel      = 1
    auto_promote      = true
    auto_revert       = true
    min_healthy_time  = "500ms"
    healthy_deadline  = "6s"
    progress_deadline = "7s"
  }

  group "probe" {
    count          = var.probe_count
    shutdown_delay = "500ms"

    scaling {
      min = 1
      max = 3
    }

    restart {
      attempts = 1
      interval = "1m"
      delay    = "500ms"
      mode     = "fail"
    }

    network {
      port "http" {
        host_network = "loopback"
      }
    }

    service {
      name     = "probe"
      provider = "consul"
      port     = "http"
      tags     = var.tags

      meta {
        version = var.behaviour
      }

      check {
        type     = "http"
        path     = "/healthz"
        interval = "1s"
        timeout  = "1s"
      }
    }

    task "probe" {
      driver = "raw_exec"

      config {
        command = var.binary
      }

      env {
        JOBS_TEST_PROBE  = var.behaviour
        JOBS_TEST_LISTEN = "${NOMAD_ADDR_http}"
      }

      resources {
        cpu    = 20
        memory = var.memory
      }
    }
  }
}

variable "node" {
  description = <<-EOT
    The machine:
    - name: node name in Consul and Nomad, and host name.
    - role: server (Consul server, Nomad server, artifact store) or client (runs jobs).
    - address: its address in the cluster's network, without mask.
    - placements: edge, services, data: what may be placed here (node metadata marquee_<placement>).
    - node_pool: Nomad node pool of a client.
    - interface: interface with the address; "" lets Nomad look for it by address.
  EOT
  type = object({
    name       = string
    role       = string
    address    = string
    placements = optional(set(string), [])
    node_pool  = optional(string, "default")
    interface  = optional(string, "")
  })

  validation {
    condition     = can(regex("^[a-z]([a-z0-9-]{0,61}[a-z0-9])?$", var.node.name))
    error_message = "node.name ${jsonencode(var.node.name)} is not a host name: lower-case letters, digits and dashes, a letter first, at most 63."
  }
  validation {
    condition     = contains(["server", "client"], var.node.role)
    error_message = "node.role of ${var.node.name} is ${jsonencode(var.node.role)}: it is server or client."
  }
  validation {
    condition     = can(regex("^[0-9.]+$", var.node.address)) && can(cidrhost("${var.node.address}/32", 0))
    error_message = "node.address of ${var.node.name} is ${jsonencode(var.node.address)}: give an IPv4 address without mask."
  }
  validation {
    condition     = length(setsubtract(var.node.placements, ["edge", "services", "data"])) == 0
    error_message = "node.placements of ${var.node.name} has ${join(", ", setsubtract(var.node.placements, ["edge", "services", "data"]))}: placements are edge, services and data."
  }
  validation {
    condition     = var.node.role == "client" || length(var.node.placements) == 0
    error_message = "node.placements of ${var.node.name} must be empty: servers run no jobs."
  }
  validation {
    condition     = can(regex("^[a-zA-Z0-9_-]{1,128}$", var.node.node_pool)) && var.node.node_pool != "all"
    error_message = "node.node_pool of ${var.node.name} is ${jsonencode(var.node.node_pool)}: letters, digits, dashes and underscores, and not all, which means every pool."
  }
  validation {
    condition     = can(regex("^[a-z0-9.@-]{0,15}$", var.node.interface))
    error_message = "node.interface of ${var.node.name} is ${jsonencode(var.node.interface)}: give the name of a network interface, or \"\"."
  }
}

variable "servers" {
  description = "Addresses of all servers, the same list on every machine. One, three, five or seven."
  type        = list(string)

  validation {
    condition     = contains([1, 3, 5, 7], length(var.servers))
    error_message = "There are ${length(var.servers)} servers: an even number is no safer than one less, so give 1, 3, 5 or 7."
  }
  validation {
    condition     = alltrue([for a in var.servers : can(regex("^[0-9.]+$", a)) && can(cidrhost("${a}/32", 0))])
    error_message = "servers must be IPv4 addresses without mask, not ${join(", ", var.servers)}."
  }
  validation {
    condition     = length(distinct(var.servers)) == length(var.servers)
    error_message = "servers names an address twice: ${join(", ", var.servers)}."
  }
  validation {
    condition     = var.node.role == "client" || contains(var.servers, var.node.address)
    error_message = "${var.node.name} is a server, but its address ${var.node.address} is not among servers."
  }
  validation {
    condition     = var.node.role == "server" || !contains(var.servers, var.node.address)
    error_message = "${var.node.name} is a client, but its address ${var.node.address} is a server's."
  }
}

variable "secrets" {
  description = <<-EOT
    What `marquee keys new` made for this machine: the agents' CA, the machine's certificate and key (PEM), the gossip keys,
    and the Consul tokens of its agent, of its Nomad and, on servers, of the management.
  EOT
  type = object({
    ca                = string
    certificate       = string
    key               = string
    consul_gossip     = string
    nomad_gossip      = string
    consul_agent      = string
    consul_nomad      = string
    consul_management = optional(string, "")
  })
  sensitive = true

  validation {
    condition     = alltrue([for name, value in var.secrets : value != "" if name != "consul_management"])
    error_message = "secrets has an empty value: run `marquee keys new` for this environment, and give all of ca, certificate, key, consul_gossip, nomad_gossip, consul_agent and consul_nomad."
  }
  validation {
    condition     = var.node.role == "client" || var.secrets.consul_management != ""
    error_message = "secrets.consul_management is empty: a server needs it to start with access control on."
  }
  validation {
    condition     = var.node.role == "server" || var.secrets.consul_management == ""
    error_message = "secrets.consul_management must not be given to a client."
  }
}

variable "cluster_addresses" {
  description = "Ranges (FIRST-LAST) of the cluster's own addresses, from which the agents and the mesh are reached. Not the gateway's: what comes through it is from outside."
  type        = list(string)

  validation {
    condition = length(var.cluster_addresses) > 0 && alltrue([
      for r in var.cluster_addresses : can(regex("^[0-9.]+-[0-9.]+$", r)) && alltrue([for a in split("-", r) : can(cidrhost("${a}/32", 0))])
    ])
    error_message = "cluster_addresses must be ranges of IPv4 addresses, at least one, for example [\"10.77.0.2-10.77.0.254\"], not ${jsonencode(var.cluster_addresses)}."
  }
}

variable "operator_networks" {
  description = "Networks (IPv4 CIDR) from which operators reach ssh, and on servers the APIs of Nomad, Consul and the artifact store."
  type        = list(string)

  validation {
    condition     = alltrue([for c in var.operator_networks : can(cidrhost(c, 0)) && can(cidrnetmask(c))])
    error_message = "operator_networks must be IPv4 CIDRs, for example [\"192.0.2.7/32\"], not ${jsonencode(var.operator_networks)}."
  }
  validation {
    condition     = alltrue([for c in var.operator_networks : !endswith(c, "/0")])
    error_message = "operator_networks must not be everybody: name the networks that operators come from."
  }
}

variable "public_ports" {
  description = "TCP ports that machines with the placement edge open to everybody."
  type        = list(number)
  default     = [1883, 8080, 8081]

  validation {
    condition     = alltrue([for p in var.public_ports : p > 1024 && p < 20000 && floor(p) == p && !contains([4646, 4647, 4648, 4700, 8300, 8301, 8501, 8502, 8503], p)])
    error_message = "public_ports must be ports between 1025 and 19999 that no agent uses, not ${jsonencode(var.public_ports)}."
  }
}

variable "ssh_key" {
  description = "Public key of the operators, as in authorized_keys."
  type        = string

  validation {
    condition     = can(regex("^(ssh-ed25519|ecdsa-sha2-nistp[0-9]+|ssh-rsa) [A-Za-z0-9+/=]+( [^\n]*)?\n?$", var.ssh_key))
    error_message = "ssh_key must be one public key, for example the content of keys/ssh.pub."
  }
}

variable "tuned" {
  description = "Notice a dead machine in about a second instead of five, which needs machines that are never that slow themselves: not under emulation."
  type        = bool
  default     = true
}

variable "ntp_servers" {
  description = "Time servers that the servers ask. The other machines ask the servers. Without any, the first server's clock is the cluster's."
  type        = list(string)
  default     = []

  validation {
    condition     = alltrue([for s in var.ntp_servers : can(regex("^[A-Za-z0-9.:-]+$", s))])
    error_message = "ntp_servers must be host names or addresses, not ${jsonencode(var.ntp_servers)}."
  }
}

variable "static_network" {
  description = "Address to configure by hand, for networks without DHCP: prefix length of node.address, gateway and name servers. Null leaves the network as the image has it."
  type = object({
    prefix       = number
    gateway      = string
    name_servers = optional(list(string), [])
  })
  default = null

  validation {
    condition = var.static_network == null ? true : (
      var.static_network.prefix >= 8 && var.static_network.prefix <= 30 && can(cidrhost("${var.static_network.gateway}/32", 0)) &&
    cidrhost("${var.static_network.gateway}/${var.static_network.prefix}", 0) == cidrhost("${var.node.address}/${var.static_network.prefix}", 0))
    error_message = "static_network of ${var.node.name} needs a prefix from 8 to 30 and a gateway in the same network as ${var.node.address}."
  }
  validation {
    condition     = var.static_network == null || var.node.interface != ""
    error_message = "static_network needs node.interface."
  }
}

variable "programs" {
  description = "Programs that the image does not have, fetched at first start: name (consul, nomad, artifactd) to URL and SHA-256. A URL that ends in .zip holds the program under its name."
  type = map(object({
    url    = string
    sha256 = string
  }))
  default = {}

  validation {
    condition     = length(setsubtract(keys(var.programs), ["artifactd", "consul", "nomad"])) == 0
    error_message = "programs has ${join(", ", setsubtract(keys(var.programs), ["artifactd", "consul", "nomad"]))}: machines run consul, nomad and artifactd."
  }
  validation {
    condition     = alltrue([for p in values(var.programs) : can(regex("^https://[^' ]+$", p.url)) && can(regex("^[0-9a-f]{64}$", p.sha256))])
    error_message = "programs need an https URL and a SHA-256 of 64 hexadecimal digits each."
  }
}

variable "extra_packages" {
  description = "Debian packages that cloud-init installs besides those that every machine has."
  type        = list(string)
  default     = []

  validation {
    condition     = alltrue([for p in var.extra_packages : can(regex("^[a-z0-9][a-z0-9+.-]+$", p))])
    error_message = "extra_packages must be names of packages, not ${jsonencode(var.extra_packages)}."
  }
}

variable "data_jobs" {
  description = "Jobs whose data a machine with the placement data keeps, for example account-db: a folder and a host volume each."
  type        = list(string)
  default     = []

  validation {
    condition     = alltrue([for job in var.data_jobs : can(regex("^[a-z]([a-z0-9-]{0,60}[a-z0-9])?$", job))])
    error_message = "data_jobs must be names of jobs, not ${jsonencode(var.data_jobs)}."
  }
}

variable "data_device" {
  description = "Block device for the data of jobs (a client's volumes), formatted at first start when it is empty. \"\" keeps them on the root disk."
  type        = string
  default     = ""

  validation {
    condition     = can(regex("^(/dev/[A-Za-z0-9/_.-]+)?$", var.data_device))
    error_message = "data_device must be a path below /dev or \"\", not ${jsonencode(var.data_device)}."
  }
}

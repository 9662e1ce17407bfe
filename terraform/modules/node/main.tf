# One list of files and one list of commands are all that make a machine; the
# two outputs say the same to cloud-init and to a shell.
locals {
  server = var.node.role == "server"
  data   = contains(var.node.placements, "data")
  edge   = contains(var.node.placements, "edge")

  consul = {
    node_name  = var.node.name
    bind_addr  = var.node.address
    retry_join = var.servers
    encrypt    = var.secrets.consul_gossip
    acl        = { tokens = { agent = var.secrets.consul_agent } }
  }

  # initial_management makes the first server know its operator from the start.
  consul_server = {
    bootstrap_expect = length(var.servers)
    acl              = { tokens = { agent = var.secrets.consul_agent, initial_management = var.secrets.consul_management } }
  }

  nomad = {
    name      = var.node.name
    bind_addr = var.node.address
    advertise = { http = var.node.address, rpc = var.node.address, serf = var.node.address }
    consul    = { token = var.secrets.consul_nomad }
  }

  nomad_server = {
    server = {
      bootstrap_expect = length(var.servers)
      encrypt          = var.secrets.nomad_gossip
      server_join      = { retry_join = var.servers }
    }
  }

  nomad_client = {
    client = merge(
      {
        servers   = [for a in var.servers : "${a}:4647"]
        node_pool = var.node.node_pool
        cni_path  = "/usr/lib/cni"
        meta      = { for p in var.node.placements : "marquee_${p}" => "true" }
        # A cloud's machine has several interfaces, and only its address is known.
        network_interface = var.node.interface != "" ? var.node.interface : "{{ GetAllInterfaces | include \"address\" \"^${var.node.address}(/|$)\" | attr \"name\" }}"
        host_network = merge(
          { private = { cidr = "${var.node.address}/32" } },
          local.edge ? { public = { cidr = "${var.node.address}/32" } } : {},
        )
      },
      local.data && length(var.data_jobs) > 0 ? { host_volume = { for job in var.data_jobs : "${job}-data" => { path = "/var/lib/marquee/volumes/${job}" } } } : {},
    )
  }

  artifactd = merge({ role = var.node.role }, local.server ? null : { servers = [for a in var.servers : "${a}:4700"] })

  firewall = join("", concat(
    [for set, elements in {
      cluster      = var.cluster_addresses
      operators    = var.operator_networks
      operator_tcp = local.server ? ["4646", "4700", "8501"] : []
      public_tcp   = local.edge ? [for p in sort(formatlist("%05d", var.public_ports)) : tostring(tonumber(p))] : []
    } : length(elements) == 0 ? "" : "add element inet marquee ${set} { ${join(", ", elements)} }\n"],
    # The servers are the cluster's clock. A cloud tells every process that asks
    # what the machine was made of, which is not for jobs.
    local.server ? ["add rule inet marquee input ip saddr @cluster udp dport 123 accept\n"] : [
      "add chain inet marquee output { type filter hook output priority filter; policy accept; }\n",
      "add rule inet marquee output ip daddr 169.254.169.254 meta skuid != 0 reject\n",
      "add chain inet marquee forward { type filter hook forward priority filter; policy accept; }\n",
      "add rule inet marquee forward ip daddr 169.254.169.254 reject\n",
    ],
  ))

  role_files = [
    for f in concat(
      [for agent in ["consul", "nomad"] : [agent, "common"]],
      [for agent in ["consul", "nomad"] : [agent, var.node.role]],
      var.tuned ? [for agent in ["consul", "nomad"] : [agent, "tuned"]] : [],
      local.data ? [["nomad", "data"]] : [],
    ) : { path = "/etc/${f[0]}.d/${f[1]}.hcl", mode = "0640", content = file("${path.module}/files/${f[0]}/${f[1]}.hcl") }
  ]

  network_file = var.static_network == null ? "" : join("\n", concat(
    ["[Match]", "Name=${var.node.interface}", "", "[Network]",
      "Address=${var.node.address}/${var.static_network.prefix}", "Gateway=${var.static_network.gateway}",
    "LinkLocalAddressing=no", "IPv6AcceptRA=no", "ConfigureWithoutCarrier=yes", ""],
  ))

  # Every file of the machine but those of its packages, each ending in a newline.
  # Owners are set by tmpfiles.conf.
  files = [for f in local.contents : merge(f, { content = "${trimsuffix(f.content, "\n")}\n" })]

  contents = concat(
    [
      { path = "/etc/marquee/tls/ca.pem", mode = "0644", content = var.secrets.ca },
      { path = "/etc/marquee/tls/node.pem", mode = "0640", content = var.secrets.certificate },
      { path = "/etc/marquee/tls/node-key.pem", mode = "0640", content = var.secrets.key },
      { path = "/etc/consul.d/node.json", mode = "0640", content = jsonencode(merge(local.consul, local.server ? local.consul_server : null)) },
      { path = "/etc/nomad.d/node.json", mode = "0640", content = jsonencode(merge(local.nomad, local.server ? local.nomad_server : null, local.server ? null : local.nomad_client)) },
      { path = "/etc/marquee/artifactd.json", mode = "0644", content = jsonencode(local.artifactd) },
      { path = "/etc/marquee/firewall.nft", mode = "0644", content = local.firewall },
      { path = "/etc/nftables.conf", mode = "0755", content = file("${path.module}/files/nftables.conf") },
    ],
    local.role_files,
    [for unit in ["artifactd", "consul", "nomad"] :
    { path = "/etc/systemd/system/${unit}.service", mode = "0644", content = file("${path.module}/systemd/${unit}.service") }],
    [
      {
        path = "/etc/systemd/system/nomad.service.d/role.conf", mode = "0644",
        content = (local.server ? file("${path.module}/templates/nomad-server.conf") :
        templatefile("${path.module}/templates/nomad-client.conf.tftpl", { servers = var.servers, data_device = var.data_device }))
      },
      { path = "/etc/sysusers.d/marquee.conf", mode = "0644", content = file("${path.module}/templates/sysusers.conf") },
      { path = "/etc/tmpfiles.d/marquee.conf", mode = "0644", content = templatefile("${path.module}/templates/tmpfiles.conf.tftpl", { role = var.node.role, jobs = local.data ? var.data_jobs : [] }) },
      {
        path = "/etc/chrony/chrony.conf", mode = "0644",
        content = templatefile("${path.module}/templates/chrony.conf.tftpl", {
          server      = local.server
          ntp_servers = local.server ? var.ntp_servers : []
          peers       = local.server ? [for a in var.servers : a if a != var.node.address] : []
          sources     = local.server ? [] : var.servers
        })
      },
      { path = "/etc/ssh/sshd_config.d/marquee.conf", mode = "0644", content = file("${path.module}/templates/sshd.conf") },
      { path = "/etc/ssh/authorized_keys.d/root", mode = "0644", content = "${trimspace(var.ssh_key)}\n" },
      { path = "/etc/sysctl.d/60-marquee.conf", mode = "0644", content = file("${path.module}/templates/sysctl.conf") },
      { path = "/etc/systemd/journald.conf.d/marquee.conf", mode = "0644", content = file("${path.module}/templates/journald.conf") },
      { path = "/etc/hostname", mode = "0644", content = "${var.node.name}\n" },
      { path = "/etc/hosts", mode = "0644", content = "127.0.0.1 localhost\n127.0.1.1 ${var.node.name}\n::1 localhost ip6-localhost\n" },
    ],
    local.server ? [] : [
      { path = "/usr/local/sbin/marquee-wait", mode = "0755", content = file("${path.module}/templates/marquee-wait.sh") },
    ],
    # Debian's package would start a database of its own.
    local.data ? [{ path = "/etc/postgresql-common/createcluster.conf", mode = "0644", content = "create_main_cluster = false\n" }] : [],
    local.network_file == "" ? [] : [
      { path = "/etc/systemd/network/10-marquee.network", mode = "0644", content = local.network_file },
    ],
    var.static_network == null ? [] : length(var.static_network.name_servers) == 0 ? [] : [
      { path = "/etc/resolv.conf", mode = "0644", content = join("", [for s in var.static_network.name_servers : "nameserver ${s}\n"]) },
    ],
    length(var.programs) == 0 ? [] : [
      { path = "/usr/local/sbin/marquee-fetch", mode = "0755", content = file("${path.module}/templates/marquee-fetch.sh") },
    ],
    var.data_device == "" ? [] : [
      { path = "/etc/systemd/system/var-lib-marquee-volumes.mount", mode = "0644", content = templatefile("${path.module}/templates/volumes.mount.tftpl", { device = var.data_device }) },
    ],
  )

  # After the files, on every machine.
  commands = concat(
    ["systemd-sysusers /etc/sysusers.d/marquee.conf"],
    var.data_device == "" ? [] : [
      "udevadm wait --timeout=300 ${var.data_device}",
      "blkid ${var.data_device} >/dev/null || mkfs.ext4 -q -L volumes ${var.data_device}",
      "systemctl daemon-reload",
      "systemctl enable --now var-lib-marquee-volumes.mount",
    ],
    ["systemd-tmpfiles --create /etc/tmpfiles.d/marquee.conf"],
    [for name, p in var.programs : "/usr/local/sbin/marquee-fetch ${name} '${p.url}' ${p.sha256}"],
  )

  packages = concat(
    ["ca-certificates", "chrony", "containernetworking-plugins", "curl", "iptables", "nftables"],
    length([for p in values(var.programs) : p if endswith(p.url, ".zip")]) > 0 ? ["unzip"] : [],
    local.data ? ["postgresql-15"] : [],
    var.extra_packages,
  )

  services = ["artifactd", "consul", "nomad"]

  user_data = join("", ["#cloud-config\n", yamlencode({
    preserve_hostname = false
    hostname          = var.node.name
    manage_etc_hosts  = false
    disable_root      = false
    ssh_pwauth        = false
    ssh_genkeytypes   = ["ed25519"]
    package_update    = true
    packages          = local.packages
    write_files = [for f in local.files : {
      path = f.path, permissions = f.mode, owner = "root:root", encoding = "gz+b64", content = base64gzip(f.content)
    }]
    runcmd = concat(
      [for c in local.commands : ["sh", "-ec", c]],
      [
        # What the packages started before it was configured.
        ["systemctl", "daemon-reload"],
        ["sysctl", "--system", "-q"],
        ["systemctl", "restart", "systemd-journald", "chrony", "ssh"],
        ["systemctl", "enable", "nftables"],
        ["systemctl", "restart", "nftables"],
        concat(["systemctl", "enable", "--now"], local.services),
      ],
    )
  })])

  seed_script = templatefile("${path.module}/templates/seed.sh.tftpl", {
    name = var.node.name, files = local.files, commands = local.commands, services = local.services,
    end  = "END-OF-${upper(substr(sha256(join("\n", local.files[*].content)), 0, 16))}"
  })
}

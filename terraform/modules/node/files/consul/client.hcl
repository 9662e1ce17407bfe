# Clients alone. Whoever reaches an agent's API gets the keys of the identities
# on its machine: it is for this machine only.
server = false

addresses {
  https = "127.0.0.1"
}

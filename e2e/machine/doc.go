// Package machine proves what the configuration of machines promises, on one
// server and one client in namespaces: nothing speaks without TLS or an encrypted
// gossip, nobody gets anything without a token, and no token is good for more
// than its holder's work. It needs root.
package machine

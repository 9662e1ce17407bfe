// Package sidecar proves sidecar mode beside native mode: the account service
// behind Envoys, with its database and the gateways native, on a cluster in a
// network of its own. It needs root, and leaves nothing on the machine.
package sidecar

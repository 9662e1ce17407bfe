//go:build !linux

package mesh

import "net"

// endUnacknowledged does nothing: only Linux has a bound for a single connection.
func (s DialSettings) endUnacknowledged(net.Conn) {}

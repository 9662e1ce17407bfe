// Package mqtt lets players in over MQTT 3.1.1 and 5: it accepts and bounds their
// connections, and hands what they send to the device plane.
package mqtt

import (
	"context"
	"fmt"
	"net"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/marquee-ads/marquee/services/device"
)

// Plane is what the connections are for. Its methods are called for one session
// after the other, for different sessions at the same time. *device.Plane is one.
type Plane interface {
	// Admit says whether a player may connect. Errors: device.ErrCredentials; any
	// other means that it cannot be told now.
	Admit(ctx context.Context, deviceID, secret string) (device.Pass, error)
	Connected(ctx context.Context, pass device.Pass, session device.Session)
	// Listens follows each subscription that takes in the channel.
	Listens(ctx context.Context, session device.Session, channel string)
	// Received returns when what was sent may be acknowledged; after an error the
	// connection is ended without.
	Received(ctx context.Context, session device.Session, channel string, payload []byte) error
	Disconnected(ctx context.Context, session device.Session)
}

// Broker speaks MQTT on connections: the seam between what accepts them and the
// library that does.
type Broker interface {
	// Serve speaks on a connection until it ends. The connection has an id of its
	// own, and closes itself when a write takes too long.
	Serve(conn *Conn)
	// Close ends what Serve began, with word to those players that understand it.
	Close() error
}

// Limits bound what players can ask of an instance.
type Limits struct {
	// Connections is how many there are at most; more are closed at once.
	Connections int
	// Connecting is how many of them may not be let in yet: beyond that those make
	// room that have said nothing for the longest.
	Connecting int
	// ConnectWithin is how long a connection may take until it is let in.
	ConnectWithin time.Duration
	// WriteWithin is how long a player may take to read what is sent to it.
	WriteWithin time.Duration
	// KeepAlive is the longest that a player may be silent; half as much again
	// passes before it is taken for gone. Players that ask for more, or for no
	// limit, get this.
	KeepAlive time.Duration
	// Packet is the largest packet from a player, in bytes.
	Packet uint32
	// InFlight is how many messages may be unacknowledged each way.
	InFlight uint16
	// PacketEvery is how often a player may send on average, and PacketBurst how
	// many packets at once: beyond that its connection is read more slowly.
	PacketEvery time.Duration
	PacketBurst int
	// FloodFor is for how long on end a player may send more than that: then its
	// connection is ended. The end of one that is read slowly is not noticed before
	// all is read that was sent.
	FloodFor time.Duration
}

// DefaultLimits suit displays: a few messages a minute each, small ones.
func DefaultLimits() Limits {
	return Limits{
		Connections: 10_000, Connecting: 500, ConnectWithin: 10 * time.Second, WriteWithin: 10 * time.Second, KeepAlive: 5 * time.Minute,
		Packet: 64 << 10, InFlight: 32, PacketEvery: 20 * time.Millisecond, PacketBurst: 100, FloodFor: time.Minute,
	}
}

// Validate names the limit that lets nothing through, or everything.
func (l Limits) Validate() error {
	for _, bound := range []struct {
		name              string
		value, from, upTo int64
	}{
		{"connections", int64(l.Connections), 1, 1_000_000},
		{"connections that are not let in yet", int64(l.Connecting), 1, 1_000_000},
		{"milliseconds to connect", l.ConnectWithin.Milliseconds(), 100, 60_000},
		{"milliseconds to write", l.WriteWithin.Milliseconds(), 100, 60_000},
		{"seconds of keep-alive", int64(l.KeepAlive / time.Second), 1, 3600},
		{"bytes of a packet", int64(l.Packet), 1024, 1 << 20},
		{"messages in flight", int64(l.InFlight), 1, 1000},
		{"microseconds between packets", l.PacketEvery.Microseconds(), 1, 10_000_000},
		{"packets at once", int64(l.PacketBurst), 1, 100_000},
		{"milliseconds of too many packets", l.FloodFor.Milliseconds(), 100, 3_600_000},
	} {
		if bound.value < bound.from || bound.value > bound.upTo {
			return fmt.Errorf("%d %s: use %d to %d", bound.value, bound.name, bound.from, bound.upTo)
		}
	}
	return nil
}

// Refused counts the connections that were not let in: device_connects_refused_total
// by reason. An instance has one, which is registered.
type Refused struct{ *prometheus.CounterVec }

// Why connections are refused, as the metric has it.
const (
	refusedConnections = "too_many_connections"
	refusedConnecting  = "too_many_connecting"
	refusedProtocol    = "protocol_version"
	refusedCredentials = "credentials"
	refusedUnavailable = "unavailable"
	// It did not wait until it was let in.
	refusedLeft = "left"
	// Closed, or of what is no CONNECT, or none in time.
	refusedNoConnect = "no_connect"
)

// NewRefused makes one that has counted nothing.
func NewRefused() Refused {
	counts := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "device_connects_refused_total", Help: "Connections of players that were not let in, by reason.",
	}, []string{"reason"})
	for _, reason := range []string{refusedConnections, refusedConnecting, refusedProtocol, refusedCredentials, refusedUnavailable, refusedLeft, refusedNoConnect} {
		counts.WithLabelValues(reason) // shown from the beginning
	}
	return Refused{counts}
}

func (r Refused) count(reason string) { r.WithLabelValues(reason).Inc() }

// Conn is a player's connection: it ends when a write takes too long, reads no
// faster than a player may send, and knows its session.
type Conn struct {
	net.Conn
	wire    *prefixed // what it is carried by
	began   time.Time
	id      string
	limits  Limits
	place   *place // among those that are not let in
	next    time.Time
	slowed  time.Time // since when it is read more slowly; zero when it is not
	session *session
	refused bool // and counted
}

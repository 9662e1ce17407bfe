package mqtt

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	mochi "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/marquee-ads/marquee/services/device"
)

// NewBroker makes a broker that speaks MQTT with the library mochi-mqtt. Of the
// library's own ideas of sessions nothing is used: each connection is a client of
// its own there, which begins clean, so that who takes over from whom, and what a
// player is told when it is back, is the plane's to say.
func NewBroker(plane Plane, limits Limits, refused Refused, log hclog.Logger) (Broker, error) {
	capabilities := mochi.NewDefaultServerCapabilities()
	capabilities.MaximumPacketSize = limits.Packet
	capabilities.MaximumInflight = limits.InFlight
	capabilities.ReceiveMaximum = limits.InFlight
	capabilities.MaximumClientWritesPending = int32(limits.InFlight)
	capabilities.MaximumSessionExpiryInterval = 0
	// Aliases would be looked up after the topic is judged.
	capabilities.TopicAliasMaximum = 0
	capabilities.SharedSubAvailable = 0
	capabilities.RetainAvailable = 0
	// Inheriting a publisher's properties into acknowledgements breaks MQTT 5.
	capabilities.Compatibilities.NoInheritedPropertiesOnAck = true
	server := mochi.New(&mochi.Options{
		Capabilities:             capabilities,
		ClientNetReadBufferSize:  1024,
		ClientNetWriteBufferSize: 1024,
		// Its log holds what players send, at every level.
		Logger: slog.New(slog.DiscardHandler),
		// Nobody can read its $SYS topics; filling them stops the world.
		SysTopicResendInterval: int64((24 * time.Hour).Seconds()),
		InlineClient:           true,
	})
	ctx, cancel := context.WithCancel(context.Background())
	h := &hook{plane: plane, limits: limits, refused: refused, log: log, server: server, ctx: ctx, sessions: make(map[*session]bool)}
	b := &broker{server: server, hook: h, cancel: cancel}
	if err := errors.Join(server.AddHook(h, nil), server.Serve()); err != nil {
		cancel()
		return nil, fmt.Errorf("starting the MQTT library: %w", err)
	}
	return b, nil
}

type broker struct {
	server *mochi.Server
	hook   *hook
	cancel context.CancelFunc
}

// listenerID is what the library calls where connections come from.
const listenerID = "players"

// Serve implements Broker.
func (b *broker) Serve(conn *Conn) {
	// Here, because the library does not tell the end of each that it began.
	defer func() {
		if s := conn.session; s != nil {
			b.hook.over(s)
		} else if !conn.refused {
			b.hook.refused.count(conn.place.refused())
		}
	}()
	// Every reason for which a connection ends is the player's, or was logged.
	_ = b.server.EstablishConnection(listenerID, conn)
}

// Close implements Broker.
func (b *broker) Close() error {
	b.hook.endAll()
	b.cancel()
	if err := b.server.Close(); err != nil {
		return fmt.Errorf("stopping the MQTT library: %w", err)
	}
	return nil
}

// session implements device.Session on a client of the library.
type session struct {
	server *mochi.Server
	client *mochi.Client
	conn   *Conn
	device string
	pass   device.Pass
	begun  bool // the plane knows of it
	ended  atomic.Bool
	done   chan struct{} // closed when it has ended
	ending *sync.WaitGroup
}

// ID implements device.Session.
func (s *session) ID() string { return s.conn.id }

// DeviceID implements device.Session.
func (s *session) DeviceID() string { return s.device }

var (
	errEnded = errors.New("the connection has ended")
	errFull  = errors.New("the player has not acknowledged what it was sent before")
)

// Send implements device.Session.
func (s *session) Send(channel string, payload []byte) error {
	if s.ended.Load() {
		return errEnded
	}
	// The library would drop it without a word.
	if s.client.State.Inflight.Len() >= int(s.conn.limits.InFlight) {
		return errFull
	}
	if err := s.server.Publish(downTopic(s.device, channel), payload, false, 1); err != nil {
		return fmt.Errorf("publishing: %w", err)
	}
	return nil
}

// End implements device.Session.
func (s *session) End(reason device.EndReason) {
	if !s.ended.CompareAndSwap(false, true) {
		return
	}
	close(s.done)
	s.ending.Go(func() {
		code := codeOf(reason)
		// In 3.1.1 a server has no word for it.
		if s.client.Properties.ProtocolVersion == 5 && s.conn.hurry() == nil {
			_ = s.server.DisconnectClient(s.client, code) // it ends below in any case
		}
		s.client.Stop(code)
	})
}

func codeOf(reason device.EndReason) packets.Code {
	switch reason {
	case device.EndTakenOver:
		return packets.ErrSessionTakenOver
	case device.EndRevoked:
		return packets.ErrNotAuthorized
	case device.EndBusy:
		return packets.ErrServerBusy
	case device.EndShutdown:
		return packets.ErrServerShuttingDown
	default:
		return packets.ErrUnspecifiedError
	}
}

// hook is how the library asks and tells.
type hook struct {
	mochi.HookBase
	plane   Plane
	limits  Limits
	refused Refused
	log     hclog.Logger
	server  *mochi.Server
	ctx     context.Context // the library's calls have none; it ends with the broker

	mu       sync.Mutex
	sessions map[*session]bool
	stopping bool
	ending   sync.WaitGroup
}

// ID implements mochi.Hook.
func (*hook) ID() string { return "players" }

// Provides implements mochi.Hook.
func (*hook) Provides(b byte) bool {
	switch b {
	case mochi.OnPacketRead, mochi.OnConnect, mochi.OnConnectAuthenticate, mochi.OnACLCheck, mochi.OnSessionEstablish,
		mochi.OnPacketProcessed, mochi.OnPublish, mochi.OnPublishDropped:
		return true
	}
	return false
}

// endAll ends every session, and lets no other begin.
func (h *hook) endAll() {
	h.mu.Lock()
	h.stopping = true
	for s := range h.sessions {
		s.End(device.EndShutdown)
	}
	h.mu.Unlock()
	h.ending.Wait()
}

// of is the session of a client, nil before it is let in.
func of(client *mochi.Client) *session {
	if conn, ok := client.Net.Conn.(*Conn); ok {
		return conn.session
	}
	return nil
}

// OnPacketRead implements mochi.Hook. It slows down who sends too much, and takes
// out of a CONNECT what would leave something behind: sessions, and wills, which
// the library would publish wherever they say.
func (h *hook) OnPacketRead(client *mochi.Client, pk packets.Packet) (packets.Packet, error) {
	if conn, ok := client.Net.Conn.(*Conn); ok {
		closed := h.ctx.Done()
		if conn.session != nil {
			closed = conn.session.done
		}
		if conn.pace(closed) && conn.session != nil {
			h.log.Warn("a player sends too many packets for too long", "device", conn.session.device)
			conn.session.End(device.EndBusy)
			return pk, packets.ErrRejectPacket
		}
	}
	// These the library neither takes nor refuses: the player would wait for ever.
	if pk.FixedHeader.Type == packets.Publish && !mochi.IsValidFilter(pk.TopicName, true) {
		return pk, packets.ErrRejectPacket
	}
	if pk.FixedHeader.Type == packets.Connect {
		pk.Connect.Clean = true
		pk.Connect.WillFlag = false
		pk.Connect.WillQos, pk.Connect.WillRetain = 0, false
		pk.Connect.WillTopic, pk.Connect.WillPayload = "", nil
		pk.Connect.WillProperties = packets.Properties{}
	}
	return pk, nil
}

// errRefused ends a connection that has been told why.
var errRefused = errors.New("the player was refused")

// OnConnect implements mochi.Hook: it lets a player in, or refuses it.
func (h *hook) OnConnect(client *mochi.Client, pk packets.Packet) error {
	conn, ok := client.Net.Conn.(*Conn)
	if !ok {
		return errRefused
	}
	conn.place.said()
	if client.Properties.ProtocolVersion < 4 {
		return h.refuse(conn, client, packets.ErrUnsupportedProtocolVersion, refusedProtocol)
	}
	ctx, cancel := context.WithTimeout(h.ctx, h.limits.ConnectWithin)
	defer cancel()
	id := string(pk.Connect.Username)
	pass, err := h.plane.Admit(ctx, id, string(pk.Connect.Password))
	switch {
	case errors.Is(err, device.ErrCredentials):
		return h.refuse(conn, client, packets.ErrBadUsernameOrPassword, refusedCredentials)
	case err != nil:
		h.log.Warn("a player cannot be let in at the moment", "device", id, "error", err)
		return h.refuse(conn, client, packets.ErrServerUnavailable, refusedUnavailable)
	}
	// It would end the connection that its player has made since.
	if time.Since(conn.began) >= longAdmit && conn.wire.left() {
		conn.refused = true
		h.refused.count(refusedLeft)
		return errRefused
	}
	// Unique in the library, whatever the player calls itself.
	client.ID = conn.id
	if client.Properties.Props.AssignedClientID != "" {
		client.Properties.Props.AssignedClientID = conn.id
	}
	if most := uint16(h.limits.KeepAlive / time.Second); client.State.Keepalive == 0 || client.State.Keepalive > most {
		client.State.Keepalive, client.State.ServerKeepalive = most, true
	}
	conn.session = &session{server: h.server, client: client, conn: conn, device: id, pass: pass, done: make(chan struct{}), ending: &h.ending}
	return nil
}

// longAdmit is for how long a player surely waits to be let in.
const longAdmit = time.Second

func (h *hook) refuse(conn *Conn, client *mochi.Client, code packets.Code, reason string) error {
	conn.refused = true
	h.refused.count(reason)
	if err := h.server.SendConnack(client, code, false, nil); err != nil {
		return fmt.Errorf("refusing a player: %w", err)
	}
	return errRefused
}

// OnConnectAuthenticate implements mochi.Hook: OnConnect has.
func (*hook) OnConnectAuthenticate(client *mochi.Client, _ packets.Packet) bool {
	return of(client) != nil
}

// OnACLCheck implements mochi.Hook.
func (*hook) OnACLCheck(client *mochi.Client, topic string, write bool) bool {
	s := of(client)
	if s == nil {
		return false
	}
	if write {
		_, ok := upChannel(s.device, topic)
		return ok
	}
	return mayRead(s.device, topic)
}

// OnSessionEstablish implements mochi.Hook. It comes before the CONNACK: when a
// player has that, earlier connections of its device are past.
func (h *hook) OnSessionEstablish(client *mochi.Client, _ packets.Packet) {
	s := of(client)
	if s == nil {
		return
	}
	h.mu.Lock()
	h.sessions[s] = true
	stopping := h.stopping
	if stopping {
		s.End(device.EndShutdown)
	}
	h.mu.Unlock()
	if !stopping {
		s.begun = true
		h.plane.Connected(h.ctx, s.pass, s)
	}
	s.conn.place.leave()
}

// OnPacketProcessed implements mochi.Hook: what a subscription asks for follows
// its acknowledgement.
func (h *hook) OnPacketProcessed(client *mochi.Client, pk packets.Packet, err error) {
	s := of(client)
	if s == nil || err != nil || pk.FixedHeader.Type != packets.Subscribe {
		return
	}
	for _, channel := range []string{device.ChannelPlaylist, device.ChannelPlays, device.ChannelCommands} {
		for _, sub := range pk.Filters {
			if listensTo(s.device, sub.Filter, channel) {
				h.plane.Listens(h.ctx, s, channel)
				break
			}
		}
	}
}

// OnPublish implements mochi.Hook. The library acknowledges when this returns.
func (h *hook) OnPublish(client *mochi.Client, pk packets.Packet) (packets.Packet, error) {
	if client.Net.Inline {
		return pk, nil
	}
	s := of(client)
	if s == nil {
		return pk, packets.ErrRejectPacket
	}
	channel, ok := upChannel(s.device, pk.TopicName)
	if !ok {
		return pk, packets.ErrRejectPacket
	}
	if err := h.plane.Received(h.ctx, s, channel, pk.Payload); err != nil {
		h.log.Warn("what a player sent is not acknowledged", "device", s.device, "channel", channel, "error", err)
		s.End(device.EndBusy)
		return pk, packets.ErrRejectPacket
	}
	// It goes to nobody else.
	pk.Ignore = true
	return pk, nil
}

// OnPublishDropped implements mochi.Hook: a player that does not read as much as
// it is sent begins anew.
func (*hook) OnPublishDropped(client *mochi.Client, _ packets.Packet) {
	if s := of(client); s != nil {
		s.End(device.EndBusy)
	}
}

// over follows the end of a connection. It has time also while the broker closes.
func (h *hook) over(s *session) {
	if s.ended.CompareAndSwap(false, true) {
		close(s.done)
	}
	h.mu.Lock()
	delete(h.sessions, s)
	h.mu.Unlock()
	if s.begun {
		h.plane.Disconnected(context.WithoutCancel(h.ctx), s)
	}
}

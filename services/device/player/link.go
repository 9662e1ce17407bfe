package player

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/eclipse/paho.golang/packets"
	"github.com/eclipse/paho.golang/paho"
)

const (
	keepAlive     = 60 // seconds
	connectWithin = 10 * time.Second
	// answerWithin is more than the 20 seconds for which a server may hold an
	// acknowledgement back.
	answerWithin = 30 * time.Second
	inFlight     = 32
	// maxBatch is in plays, maxBatchBytes in bytes of the journal: a packet may have
	// 64 KiB.
	maxBatch      = 200
	maxBatchBytes = 48 << 10
	// playsTaken is how old a play may be.
	playsTaken = 30 * 24 * time.Hour
	// steady is how long a connection lasts that was a good one.
	steady = 10 * time.Second
	// noServerPause is how often servers are looked for while none is known.
	noServerPause = 500 * time.Millisecond
	// rivalWithin is how soon after it was replaced a display is replaced again when
	// another player has its credentials, too: longer than such a display rests, so
	// that the two change places no more often than that.
	rivalWithin = 2 * refusedPause
	// lateWithin is for how long a server may still answer an attempt to connect that
	// the player has given up.
	lateWithin = time.Minute
)

// ErrRefused is credentials that are not good, or not any more.
var ErrRefused = errors.New("the credentials are refused: have a claim code made, and start with it")

// lost is why a connection ended, and what it means for the next.
type lost struct {
	next   Connection
	atOnce bool
	// unanswered means that the server may still act on the attempt to connect.
	unanswered bool
	reason     error
}

// rivalry tells a display that two players connect as from one that lost its
// connection to an attempt of its own, which it had given up and which was answered
// late.
type rivalry struct {
	replaced   time.Time // last, but for what is its own doing
	unanswered time.Time // the last attempt of which it is not known what became
}

// ended takes note of how a connection ended, and says how it did: a display that was
// replaced comes back soon, unless that was so a while ago already.
func (r *rivalry) ended(why lost, now time.Time) lost {
	if why.unanswered {
		r.unanswered = now
	}
	if why.next != Replaced {
		return why
	}
	// The zero times are long ago.
	again, own := now.Sub(r.replaced) < rivalWithin, now.Sub(r.unanswered) < lateWithin
	if !own {
		r.replaced = now
	}
	if again && !own {
		why.reason = fmt.Errorf("another player has its credentials: the device connected elsewhere twice within %s", rivalWithin)
		return why
	}
	return lost{next: Offline, reason: errors.New("the device connected again: an attempt of its own was answered late, or another player has its credentials")}
}

// connect stays connected until ctx ends. Plays are handed in until then, and nothing
// is begun after playing has ended.
func (d *Display) connect(ctx, playing context.Context) {
	if d.spread > 0 && sleep(playing, rand.N(d.spread)) != nil {
		return
	}
	var untried []string
	var rivals rivalry
	for attempts := 0; playing.Err() == nil; attempts++ {
		d.update(func(s *Status) { s.Connection = Connecting })
		server, rest, err := d.nextServer(playing, untried)
		if err != nil {
			return
		}
		untried = rest
		began := time.Now()
		ended := d.session(ctx, playing, server)
		why := rivals.ended(ended, time.Now())
		d.update(func(s *Status) { s.Connection = why.next })
		signal(d.handed) // nothing more is
		if ctx.Err() != nil {
			return
		}
		if why.next == Refused && d.newest().Version == 0 {
			d.nothing(ErrRefused)
		}
		lasted := time.Since(began) >= steady
		// One that was replaced was let in.
		if lasted || ended.next == Replaced {
			attempts = 0
		}
		pause := backOff(attempts)
		switch {
		case why.next != Offline:
			pause = refusedPause + rand.N(refusedPause/2)
		case why.atOnce && lasted:
			pause = 0
		}
		d.says("not connected to %s: %v; the next attempt is in %s", server, why.reason, pause.Round(100*time.Millisecond))
		if sleep(playing, pause) != nil {
			return
		}
	}
}

// nextServer takes one of those that were not tried yet and are still servers, or of
// all when there is none. It waits while no server is known.
func (d *Display) nextServer(playing context.Context, untried []string) (server string, rest []string, err error) {
	for told := false; ; told = true {
		all, err := d.servers()
		untried = slices.DeleteFunc(untried, func(s string) bool { return !slices.Contains(all, s) })
		if len(untried) == 0 {
			untried = slices.Clone(all)
			rand.Shuffle(len(untried), func(i, j int) { untried[i], untried[j] = untried[j], untried[i] })
		}
		if len(untried) > 0 {
			return untried[0], untried[1:], nil
		}
		if !told {
			if err == nil {
				err = errors.New("no server is known")
			}
			d.update(func(s *Status) { s.Connection = Offline })
			d.says("not connected: %v", err)
		}
		if err := sleep(playing, noServerPause); err != nil {
			return "", nil, err
		}
	}
}

// session is one connection, from its beginning to its end.
func (d *Display) session(ctx, playing context.Context, server string) lost {
	conn, err := d.dial(playing, server)
	if err != nil {
		return lost{next: Offline, reason: err}
	}
	id := d.credentials.DeviceID
	ended := make(chan lost, 1)
	client := paho.NewClient(paho.ClientConfig{
		Conn: packets.NewThreadSafeConn(&hurried{conn}), PacketTimeout: answerWithin,
		OnPublishReceived: []func(paho.PublishReceived) (bool, error){func(r paho.PublishReceived) (bool, error) {
			d.received(r.Packet.Topic, r.Packet.Payload)
			return true, nil
		}},
		OnServerDisconnect: func(p *paho.Disconnect) { tell(ended, disconnected(p.ReasonCode)) },
		OnClientError:      func(err error) { tell(ended, lost{next: Offline, reason: err}) },
	})
	connecting, cancel := context.WithTimeout(playing, connectWithin)
	defer cancel()
	receive := uint16(inFlight)
	ack, err := client.Connect(connecting, &paho.Connect{
		ClientID: id, CleanStart: true, KeepAlive: keepAlive, Username: id, UsernameFlag: true,
		Password: []byte(d.credentials.Secret), PasswordFlag: true, Properties: &paho.ConnectProperties{ReceiveMaximum: &receive},
	})
	if err != nil {
		if ack != nil && (ack.ReasonCode == packets.ConnackBadUsernameOrPassword || ack.ReasonCode == packets.ConnackNotAuthorized) {
			return lost{next: Refused, reason: ErrRefused}
		}
		return lost{next: Offline, unanswered: ack == nil, reason: err}
	}
	defer func() { _ = client.Disconnect(&paho.Disconnect{}) }() // it may have ended already
	// The library may wait for an acknowledgement that cannot come any more.
	open, shut := context.WithCancel(ctx)
	var watching sync.WaitGroup
	watching.Go(func() {
		select {
		case <-client.Done():
			shut()
		case <-open.Done():
		}
	})
	defer func() {
		shut()
		watching.Wait()
	}()
	failed := func(err error) lost {
		select {
		case <-client.Done():
			return whyEnded(ctx, ended)
		default:
			return lost{next: Offline, reason: err}
		}
	}
	if err := d.subscribe(open, client); err != nil {
		return failed(err)
	}
	watching.Go(func() { d.answer(open, client) })
	d.update(func(s *Status) { s.Connection = Connected })
	d.says("connected to %s", server)
	for {
		if err := d.handIn(open, client); err != nil {
			return failed(err)
		}
		select {
		case <-d.written:
		case <-client.Done():
			return whyEnded(ctx, ended)
		case <-ctx.Done():
			return lost{next: Offline, reason: ctx.Err()}
		}
	}
}

// encrypted is what the addresses of servers begin with that are spoken to over TLS.
const encrypted = "mqtts://"

// dial connects to a server, over TLS where its address says so.
func (d *Display) dial(ctx context.Context, server string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, connectWithin)
	defer cancel()
	address, secure := strings.CutPrefix(server, encrypted)
	raw, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	if !secure {
		return &unencrypted{Conn: raw}, nil
	}
	cfg := &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: d.authorities}
	if cfg.ServerName, _, err = net.SplitHostPort(address); err != nil {
		return nil, errors.Join(fmt.Errorf("%s is no address: %w", server, err), raw.Close())
	}
	conn := tls.Client(raw, cfg)
	err = conn.HandshakeContext(ctx)
	if err == nil {
		return conn, nil
	}
	raw.Close()
	var untrusted *tls.CertificateVerificationError
	if errors.As(err, &untrusted) {
		return nil, fmt.Errorf("its certificate is not trusted: %w; --tls-ca names the authorities that are", err)
	}
	return nil, fmt.Errorf("TLS: %w; a server that speaks none has an address without %s", err, encrypted)
}

// unencrypted is a connection without TLS, which tells a server that wants TLS from
// one that is broken.
type unencrypted struct {
	net.Conn
	read bool
}

// tlsAlert is what a record of TLS with an alert begins with, and no packet of MQTT
// that a server sends first.
const tlsAlert = 0x15

func (u *unencrypted) Read(b []byte) (int, error) {
	n, err := u.Conn.Read(b)
	switch {
	case u.read:
	case n > 0 && b[0] == tlsAlert:
		return 0, fmt.Errorf("the server speaks TLS: write its address as %s%s", encrypted, u.RemoteAddr())
	case n > 0:
		u.read = true
	case errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET):
		return 0, fmt.Errorf("it closed the connection at once: it has no room, or speaks TLS (an address that begins with %s): %w", encrypted, err)
	}
	return n, err
}

// whyEnded waits for the word that the library sends after the end.
func whyEnded(ctx context.Context, ended <-chan lost) lost {
	select {
	case why := <-ended:
		return why
	case <-ctx.Done():
		return lost{next: Offline, reason: ctx.Err()}
	}
}

// tell is for the first word alone: what follows is a consequence.
func tell(ended chan<- lost, why lost) {
	select {
	case ended <- why:
	default:
	}
}

// disconnected is what a server's DISCONNECT means.
func disconnected(reason byte) lost {
	switch reason {
	case packets.DisconnectServerShuttingDown:
		return lost{next: Offline, atOnce: true, reason: errors.New("the server stops")}
	case packets.DisconnectSessionTakenOver:
		return lost{next: Replaced, reason: errors.New("the device connected again")}
	case packets.DisconnectNotAuthorized:
		return lost{next: Refused, reason: ErrRefused}
	}
	return lost{next: Offline, reason: fmt.Errorf("the server ended the connection with reason 0x%02X", reason)}
}

// handIn hands in the plays that are not acknowledged, the oldest first.
func (d *Display) handIn(ctx context.Context, client *paho.Client) error {
	for {
		expired, err := d.journal.Expire(d.wall().Add(-playsTaken))
		d.dropped(expired, "they are older than 30 days")
		if err != nil {
			return err
		}
		plays, upTo, err := d.journal.Next(maxBatch, maxBatchBytes)
		if err != nil || len(plays) == 0 {
			return err
		}
		text, err := json.Marshal(struct {
			BatchID string `json:"batch_id"`
			Plays   []Play `json:"plays"`
		}{plays[0].ID, plays})
		if err != nil {
			return fmt.Errorf("writing a batch: %w", err)
		}
		if _, err := client.Publish(ctx, &paho.Publish{Topic: "d/" + d.credentials.DeviceID + "/up/plays", QoS: 1, Payload: text}); err != nil {
			return fmt.Errorf("handing in plays: %w", err)
		}
		if err := d.journal.Acknowledge(upTo); err != nil {
			d.says("plays that are acknowledged may be handed in again: %v", err)
		}
		signal(d.handed)
	}
}

// received takes what the server sent. Channels that it does not know are for newer
// players.
func (d *Display) received(topic string, payload []byte) {
	down := "d/" + d.credentials.DeviceID + "/down/"
	switch topic {
	case down + "playlist":
		p, err := parsePlaylist(payload, d.credentials.DeviceID)
		if err != nil {
			d.says("a playlist is not used: %v", err)
			return
		}
		d.want(p)
	case down + "commands":
		d.commanded(payload)
	case down + "plays":
		var receipt struct {
			Rejected   int64 `json:"rejected"`
			Rejections []struct {
				ID     string `json:"id"`
				Reason string `json:"reason"`
			} `json:"rejections"`
		}
		if err := json.Unmarshal(payload, &receipt); err != nil {
			d.says("the answer to a batch is not understood: %v", err)
			return
		}
		d.update(func(s *Status) { s.Rejected += receipt.Rejected })
		if len(receipt.Rejections) > 0 {
			first := receipt.Rejections[0]
			d.says("%d plays are set aside by the server, the first, %.64q, as %.64q", receipt.Rejected, first.ID, first.Reason)
		}
	}
}

// hurried is a connection whose writes end in time: the library's would not.
type hurried struct{ net.Conn }

func (h *hurried) Write(b []byte) (int, error) {
	if err := h.SetWriteDeadline(time.Now().Add(connectWithin)); err != nil {
		return 0, err
	}
	return h.Conn.Write(b)
}

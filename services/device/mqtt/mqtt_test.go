package mqtt

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/stretchr/testify/require"

	"github.com/marquee-ads/marquee/services/device"
)

const (
	good     = "dev_01ARZ3NDEKTSV4RRFFQ69G5FAV"
	patience = 10 * time.Second
)

// recorder is a plane that lets the device good in with any password, and keeps
// what it is told.
type recorder struct {
	received func(channel string, payload []byte) error // nil takes everything
	admits   func()                                     // waits until a player may be let in

	mu       sync.Mutex
	sessions []device.Session
	gone     int
	listens  []string
}

func (r *recorder) Admit(_ context.Context, deviceID, _ string) (device.Pass, error) {
	if deviceID == "away" {
		return device.Pass{}, io.ErrUnexpectedEOF
	}
	if deviceID != good {
		return device.Pass{}, device.ErrCredentials
	}
	if r.admits != nil {
		r.admits()
	}
	return device.Pass{}, nil
}

func (r *recorder) Connected(_ context.Context, _ device.Pass, s device.Session) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.sessions = append(r.sessions, s)
}

func (r *recorder) Listens(_ context.Context, _ device.Session, channel string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.listens = append(r.listens, channel)
}

func (r *recorder) Received(_ context.Context, _ device.Session, channel string, payload []byte) error {
	if r.received == nil {
		return nil
	}
	return r.received(channel, payload)
}

func (r *recorder) Disconnected(context.Context, device.Session) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.gone++
}

func (r *recorder) last(t testing.TB) device.Session {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	require.NotEmpty(t, r.sessions)
	return r.sessions[len(r.sessions)-1]
}

// balanced waits until as many sessions have ended as began.
func (r *recorder) balanced(t testing.TB) {
	t.Helper()
	require.Eventually(t, func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		return len(r.sessions) == r.gone
	}, patience, 5*time.Millisecond, "sessions that began did not end")
}

// journal is a log that can be looked at.
type journal struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (j *journal) Write(b []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.text.Write(b)
}

func (j *journal) String() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.text.String()
}

func port(t testing.TB) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	return l
}

func listen(t testing.TB, plane Plane, limits Limits) (*Listener, *journal) {
	t.Helper()
	written := &journal{}
	log := hclog.New(&hclog.LoggerOptions{Output: written, Level: hclog.Debug})
	broker, err := NewBroker(plane, limits, NewRefused(), log)
	require.NoError(t, err)
	l := NewListener([]Port{{Listener: port(t)}}, nil, broker, limits, NewRefused(), log)
	served := make(chan struct{})
	go func() {
		defer close(served)
		l.Serve()
	}()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		require.NoError(t, l.Close(ctx))
		<-served
		require.NotContains(t, written.String(), "broke the broker")
	})
	return l, written
}

// Packets, as bytes.

func text(s string) []byte { return append(binary.BigEndian.AppendUint16(nil, uint16(len(s))), s...) }

func packet(header byte, body ...[]byte) []byte {
	all := bytes.Join(body, nil)
	out := []byte{header}
	for n := len(all); ; {
		b := byte(n % 128)
		if n /= 128; n > 0 {
			out = append(out, b|0x80)
			continue
		}
		return append(append(out, b), all...)
	}
}

func connect(version byte, user string, keepAlive uint16) []byte {
	var properties []byte
	if version == 5 {
		properties = []byte{0}
	}
	name := "MQTT"
	if version == 3 {
		name = "MQIsdp"
	}
	return packet(0x10, text(name), []byte{version, 0xC2}, binary.BigEndian.AppendUint16(nil, keepAlive), properties, text("display"), text(user), text("secret"))
}

func publish(version byte, topic, payload string, id uint16) []byte {
	var properties []byte
	if version == 5 {
		properties = []byte{0}
	}
	return packet(0x32, text(topic), binary.BigEndian.AppendUint16(nil, id), properties, []byte(payload))
}

func subscribe(topic string, id uint16) []byte {
	return packet(0x82, binary.BigEndian.AppendUint16(nil, id), text(topic), []byte{1})
}

// raw is a connection on which a test writes bytes.
type raw struct {
	net.Conn
	in *bufio.Reader
}

func dial(t testing.TB, l *Listener) *raw {
	t.Helper()
	conn, err := net.Dial("tcp", l.ports[0].Addr().String())
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close() })
	require.NoError(t, conn.SetDeadline(time.Now().Add(patience)))
	return &raw{conn, bufio.NewReader(conn)}
}

func (r *raw) send(t testing.TB, packets ...[]byte) {
	t.Helper()
	_, err := r.Write(bytes.Join(packets, nil))
	require.NoError(t, err)
}

// next reads a packet: its first byte, and what follows its length.
func (r *raw) next() (header byte, body []byte, err error) {
	if header, err = r.in.ReadByte(); err != nil {
		return 0, nil, err
	}
	length, err := binary.ReadUvarint(r.in)
	if err != nil {
		return 0, nil, err
	}
	body = make([]byte, length)
	_, err = io.ReadFull(r.in, body)
	return header, body, err
}

func (r *raw) expect(t testing.TB, header byte) []byte {
	t.Helper()
	got, body, err := r.next()
	require.NoError(t, err)
	require.Equal(t, fmt.Sprintf("%x", header), fmt.Sprintf("%x", got))
	return body
}

// closed waits for the end, whatever else comes before it.
func (r *raw) closed(t testing.TB) {
	t.Helper()
	_, err := io.Copy(io.Discard, r.in)
	var timeout net.Error
	require.False(t, errors.As(err, &timeout) && timeout.Timeout(), "the connection was not ended")
}

func enter(t testing.TB, l *Listener, version byte) *raw {
	t.Helper()
	r := dial(t, l)
	r.send(t, connect(version, good, 60))
	require.Zero(t, r.expect(t, 0x20)[1], "refused")
	return r
}

func TestRefusals(t *testing.T) {
	plane := &recorder{}
	l, _ := listen(t, plane, DefaultLimits())
	for name, c := range map[string]struct {
		version byte
		user    string
		code    byte
	}{
		"3Credentials": {4, "dev_x", 5}, "3Away": {4, "away", 3}, "3TooOld": {3, good, 1},
		"5Credentials": {5, "dev_x", 0x86}, "5Away": {5, "away", 0x88},
	} {
		t.Run(name, func(t *testing.T) {
			r := dial(t, l)
			r.send(t, connect(c.version, c.user, 60))
			body := r.expect(t, 0x20)
			require.Equal(t, c.code, body[1])
			r.closed(t)
		})
	}
	require.Empty(t, plane.sessions)
}

// TestLeft: a player that has gone by the time it could be let in takes nobody's
// place, and one that waits is let in.
func TestLeft(t *testing.T) {
	asked, admitted := make(chan struct{}), make(chan struct{})
	plane := &recorder{admits: func() {
		asked <- struct{}{}
		<-admitted
	}}
	l, _ := listen(t, plane, DefaultLimits())
	gone, waits, hurries := dial(t, l), dial(t, l), dial(t, l)
	gone.send(t, connect(4, good, 60))
	waits.send(t, connect(4, good, 60))
	hurries.send(t, connect(4, good, 60))
	for range 3 {
		<-asked
	}
	hurries.send(t, subscribe("d/"+good+"/down/#", 7)) // before it may
	require.NoError(t, gone.Close())
	<-time.After(longAdmit) // what a busy database takes
	close(admitted)
	require.Zero(t, waits.expect(t, 0x20)[1])
	require.Zero(t, hurries.expect(t, 0x20)[1])
	require.Equal(t, []byte{0, 7}, hurries.expect(t, 0x90)[:2])
	waits.send(t, subscribe("d/"+good+"/down/#", 8))
	require.Equal(t, []byte{0, 8}, waits.expect(t, 0x90)[:2])
	require.Eventually(t, func() bool { return len(l.places) == 2 }, patience, 5*time.Millisecond, "the one that is gone has a place")
	plane.mu.Lock()
	defer plane.mu.Unlock()
	require.Len(t, plane.sessions, 2, "it has taken a place")
}

// malformed are bytes that are no MQTT, or none that belongs here.
func malformed() map[string][]byte {
	topic := "d/" + good + "/up/plays"
	return map[string][]byte{
		"Zero":             {0},
		"Zeros":            bytes.Repeat([]byte{0}, 100),
		"HTTP":             []byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
		"TLS":              {0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3},
		"LengthTooLong":    {0x30, 0xff, 0xff, 0xff, 0xff, 0x7f},
		"LengthHuge":       {0x30, 0xff, 0xff, 0xff, 0x7f},
		"SecondConnect":    connect(4, good, 60),
		"Connack":          packet(0x20, []byte{0, 0}),
		"Reserved":         packet(0x00),
		"ReservedFlags":    packet(0x85, []byte{0, 1}, text(topic), []byte{1}),
		"PublishQoS3":      packet(0x36, text(topic), []byte{0, 1}, []byte("x")),
		"PublishNoTopic":   packet(0x32, text(""), []byte{0, 1}, []byte("x")),
		"PublishShort":     packet(0x32, []byte{0, 50, 'd'}),
		"PublishNoID":      packet(0x32, text(topic)),
		"PublishIDZero":    publish(4, topic, "x", 0),
		"PublishWildcard":  publish(4, "d/"+good+"/up/#", "x", 1),
		"PublishBadUTF8":   publish(4, "d/\xff\xfe", "x", 1),
		"PublishNUL":       publish(4, "d/\x00", "x", 1),
		"PublishElsewhere": publish(4, "d/another/up/plays", "x", 1),
		"PublishSys":       publish(4, "$SYS/broker", "x", 1),
		"SubscribeNothing": packet(0x82, []byte{0, 1}),
		"SubscribeNoFlags": packet(0x82, []byte{0, 1}, text("d/x")),
		"SubscribeIDZero":  packet(0x82, []byte{0, 0}, text("d/x"), []byte{1}),
		"UnsubscribeShort": packet(0xa2, []byte{0}),
		"PubackShort":      packet(0x40, []byte{0}),
		"TooLarge":         publish(4, topic, strings.Repeat("x", 65<<10), 1),
		"LargerThanItSays": append([]byte{0x32, 4}, publish(4, topic, "x", 1)...),
	}
}

func TestMalformed(t *testing.T) {
	plane := &recorder{}
	limits := DefaultLimits()
	limits.ConnectWithin = time.Second
	l, _ := listen(t, plane, limits)
	other := enter(t, l, 4)
	for name, payload := range malformed() {
		if name != "SecondConnect" {
			t.Run("First/"+name, func(t *testing.T) {
				r := dial(t, l)
				_, _ = r.Write(payload) // the broker may have enough before the end
				r.closed(t)
			})
		}
		t.Run("Then/"+name, func(t *testing.T) {
			r := enter(t, l, 4)
			// What is short of a packet's length ends with the bytes.
			_, _ = r.Write(payload)
			_ = r.Conn.(*net.TCPConn).CloseWrite() // the broker may have ended it by now
			r.closed(t)
		})
	}
	other.send(t, packet(0xc0))
	other.expect(t, 0xd0)
	other.Close()
	plane.balanced(t)
}

func TestConnections(t *testing.T) {
	limits := DefaultLimits()
	limits.Connections = 2
	l, _ := listen(t, &recorder{}, limits)
	first := enter(t, l, 4)
	enter(t, l, 5)
	dial(t, l).closed(t)
	first.Close()
	require.Eventually(t, func() bool { return len(l.places) == 1 }, patience, time.Millisecond)
	enter(t, l, 4)
}

func TestKeepAlive(t *testing.T) {
	plane := &recorder{}
	l, _ := listen(t, plane, DefaultLimits())
	silent := dial(t, l)
	silent.send(t, connect(4, good, 2))
	silent.expect(t, 0x20)
	silent.closed(t)
	plane.balanced(t)

	for _, asked := range []uint16{0, 301, 65535} {
		r := dial(t, l)
		r.send(t, connect(5, good, asked))
		// Server Keep Alive (0x13) of 300 s.
		require.Contains(t, string(r.expect(t, 0x20)), "\x13\x01\x2c", "keep-alive %d", asked)
	}
}

// TestAcknowledgement holds a PUBACK back until the plane has what was sent.
func TestAcknowledgement(t *testing.T) {
	took, release := make(chan string), make(chan error)
	plane := &recorder{received: func(channel string, payload []byte) error {
		took <- channel + " " + string(payload)
		return <-release
	}}
	l, _ := listen(t, plane, DefaultLimits())
	for _, version := range []byte{4, 5} {
		t.Run(fmt.Sprint(version), func(t *testing.T) {
			r := enter(t, l, version)
			r.send(t, publish(version, "d/"+good+"/up/plays", "one", 7))
			require.Equal(t, "plays one", <-took)
			require.NoError(t, r.SetReadDeadline(time.Now().Add(100*time.Millisecond)))
			_, _, err := r.next()
			require.ErrorContains(t, err, "timeout", "acknowledged too soon")
			require.NoError(t, r.SetReadDeadline(time.Now().Add(patience)))
			release <- nil
			require.Equal(t, []byte{0, 7}, r.expect(t, 0x40)[:2])

			r.send(t, publish(version, "d/"+good+"/up/plays", "two", 8))
			require.Equal(t, "plays two", <-took)
			release <- errors.New("the database is away")
			for {
				header, _, err := r.next()
				if err != nil {
					break
				}
				require.Equal(t, byte(0xe0), header, "acknowledged what is not stored")
			}
		})
	}
}

// TestSlowReader has a player that acknowledges nothing.
func TestSlowReader(t *testing.T) {
	plane := &recorder{}
	limits := DefaultLimits()
	limits.InFlight = 4
	l, _ := listen(t, plane, limits)
	r := enter(t, l, 4)
	r.send(t, subscribe("d/"+good+"/down/#", 1))
	r.expect(t, 0x90)
	s := plane.last(t)
	for n := range 4 {
		require.NoError(t, s.Send("playlist", []byte("x")), "message %d", n)
		require.Equal(t, "playlistx", strings.Replace(strings.TrimPrefix(string(r.expect(t, 0x32)[2:]), "d/"+good+"/down/"), string([]byte{0, byte(n + 1)}), "", 1))
	}
	require.Error(t, s.Send("playlist", []byte("x")), "a fifth is in flight")
	r.send(t, packet(0x40, []byte{0, 1}))
	require.Eventually(t, func() bool { return s.Send("playlist", []byte("x")) == nil }, patience, time.Millisecond)
	s.End(device.EndBusy)
	r.closed(t)
	plane.balanced(t)
	require.Error(t, s.Send("playlist", []byte("x")), "it has ended")
}

// TestNoReader has a player that reads nothing at all.
func TestNoReader(t *testing.T) {
	plane := &recorder{}
	limits := DefaultLimits()
	limits.WriteWithin, limits.InFlight = 300*time.Millisecond, 1000
	l, _ := listen(t, plane, limits)
	r := enter(t, l, 4)
	r.send(t, subscribe("d/"+good+"/down/#", 1))
	r.expect(t, 0x90)
	s := plane.last(t)
	payload := bytes.Repeat([]byte("x"), 60<<10)
	for range 900 {
		if s.Send("playlist", payload) != nil {
			break
		}
	}
	plane.balanced(t)
	// Somebody else is served meanwhile.
	enter(t, l, 4)
}

func TestFlood(t *testing.T) {
	limits := DefaultLimits()
	limits.PacketEvery, limits.PacketBurst = 10*time.Millisecond, 5
	l, _ := listen(t, &recorder{}, limits)
	r := enter(t, l, 4)
	began := time.Now()
	r.send(t, bytes.Repeat(packet(0xc0), 45))
	for range 45 {
		r.expect(t, 0xd0)
	}
	require.Greater(t, time.Since(began), 350*time.Millisecond, "a flood is read as fast as it comes")
}

func TestClose(t *testing.T) {
	plane := &recorder{}
	limits := DefaultLimits()
	broker, err := NewBroker(plane, limits, NewRefused(), hclog.NewNullLogger())
	require.NoError(t, err)
	l := NewListener([]Port{{Listener: port(t)}}, nil, broker, limits, NewRefused(), hclog.NewNullLogger())
	go l.Serve()
	three, five := enter(t, l, 4), enter(t, l, 5)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	require.NoError(t, l.Close(ctx))
	require.Equal(t, byte(0x8b), five.expect(t, 0xe0)[0], "it is not told that the server stops")
	three.closed(t)
	five.closed(t)
	plane.balanced(t)
}

func TestTopics(t *testing.T) {
	for filter, want := range map[string]bool{
		"d/me/down/#": true, "d/me/down/x": true, "d/me/down/+/y": true, "d/me/down/": false, "d/me/down": false,
		"d/me/#": false, "d/+/down/x": false, "#": false, "": false, "d/me2/down/x": false, "d/m/down/x": false,
	} {
		require.Equal(t, want, mayRead("me", filter), filter)
	}
	require.False(t, mayRead("", "d//down/x"))
	for topic, want := range map[string]string{"d/me/up/plays": "plays", "d/me/up/": "", "d/me/up/#": "", "d/you/up/plays": "", "d/me/down/plays": ""} {
		channel, ok := upChannel("me", topic)
		require.Equal(t, want != "", ok, topic)
		if ok {
			require.Equal(t, want, channel)
		}
	}
}

func TestLimits(t *testing.T) {
	require.NoError(t, DefaultLimits().Validate())
	for name, change := range map[string]func(*Limits){
		"Connections": func(l *Limits) { l.Connections = 0 }, "Connecting": func(l *Limits) { l.Connecting = -1 },
		"ConnectWithin": func(l *Limits) { l.ConnectWithin = 0 }, "WriteWithin": func(l *Limits) { l.WriteWithin = time.Hour },
		"KeepAlive": func(l *Limits) { l.KeepAlive = 0 }, "Packet": func(l *Limits) { l.Packet = 0 }, "InFlight": func(l *Limits) { l.InFlight = 0 },
		"PacketEvery": func(l *Limits) { l.PacketEvery = 0 }, "PacketBurst": func(l *Limits) { l.PacketBurst = 0 },
		"FloodFor": func(l *Limits) { l.FloodFor = 0 },
	} {
		l := DefaultLimits()
		change(&l)
		require.Error(t, l.Validate(), name)
	}
}

// FuzzBytes sends bytes before and after a player is let in: the connection ends,
// and nothing else does.
func FuzzBytes(f *testing.F) {
	for _, payload := range malformed() {
		if len(payload) < 1000 {
			f.Add(payload, byte(4))
			f.Add(payload, byte(5))
		}
	}
	f.Add(append(subscribe("d/"+good+"/down/#", 1), publish(4, "d/"+good+"/up/plays", "{}", 2)...), byte(4))
	f.Add(connect(5, good, 60), byte(0))
	plane := &recorder{}
	limits := DefaultLimits()
	limits.ConnectWithin, limits.WriteWithin, limits.PacketBurst = time.Second, time.Second, 100_000
	l, written := listen(f, plane, limits)
	f.Fuzz(func(t *testing.T, payload []byte, version byte) {
		here, there := net.Pipe()
		l.take(there, false)
		read := make(chan struct{})
		go func() {
			defer close(read)
			_, _ = io.Copy(io.Discard, here) // until the broker ends it
		}()
		if version == 4 || version == 5 {
			payload = append(connect(version, good, 60), payload...)
		}
		_, _ = here.Write(payload) // the broker may have enough before the end
		here.Close()
		<-read
		require.NotContains(t, written.String(), "broke the broker")
	})
}

// BenchmarkIdle is the memory of a player that is connected and says nothing, with
// the test's own side of it.
func BenchmarkIdle(b *testing.B) {
	const players = 2000
	plane := &recorder{}
	l, _ := listen(b, plane, DefaultLimits())
	for b.Loop() {
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		conns := make([]net.Conn, players)
		hello, answer := connect(4, good, 300), make([]byte, 4)
		for n := range conns {
			conn, err := net.Dial("tcp", l.ports[0].Addr().String())
			require.NoError(b, err)
			_, err = conn.Write(hello)
			require.NoError(b, err)
			_, err = io.ReadFull(conn, answer)
			require.NoError(b, err)
			conns[n] = conn
		}
		runtime.GC()
		runtime.ReadMemStats(&after)
		used := (after.HeapInuse + after.StackInuse) - (before.HeapInuse + before.StackInuse)
		b.ReportMetric(float64(used)/players, "B/player")
		for _, conn := range conns {
			conn.Close()
		}
		plane.balanced(b)
	}
}

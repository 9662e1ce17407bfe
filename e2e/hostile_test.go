package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/eclipse/paho.mqtt.golang/packets"
	"github.com/stretchr/testify/require"

	"github.com/marquee-ads/marquee/e2e/scenario"
)

const (
	// halfOpen is how many connections are made that say nothing, and from how many
	// addresses: a gateway takes 1,000 from one.
	halfOpen, halfOpenFrom = 10_000, 20
	// neighbourWithin is how long a display that does nothing wrong may wait for its
	// acknowledgement meanwhile, and newcomerWithin how long one that comes, again and
	// again, until it is let in.
	neighbourWithin, newcomerWithin = 3 * time.Second, 20 * time.Second
)

// neighbour is a display that does what displays do.
type neighbour struct {
	*display
	longest time.Duration
}

// plays hands in one play.
func (n *neighbour) plays(t *testing.T) {
	t.Helper()
	for len(n.got) > 0 {
		<-n.got // what became of earlier ones
	}
	began := time.Now()
	n.play(1)
	n.handIn(t, fmt.Sprint("batch-", n.made))
	n.longest = max(n.longest, time.Since(began))
	require.LessOrEqual(t, n.longest, neighbourWithin, "another display is disturbed")
}

// What comes in at the gateways' doors for displays and is no display, or a bad one,
// is contained, and another display's plays are counted meanwhile.
func TestHostileDisplays(t *testing.T) {
	ctx := begin(t, 4*time.Minute)
	o := newOwner(t, ctx)
	doors := displayDoors(t, ctx)
	require.Len(t, doors, 2)
	enrol := func() *display {
		t.Helper()
		d := o.enrol(t, ctx)
		o.do(t, ctx, http.MethodPut, o.on("/"+d.id+"/playlist"), map[string]any{"items": []any{map[string]any{
			"creativeId": "spring-sale", "url": "https://media.example.com/spring-sale.png", "sha256": strings.Repeat("0", 64), "mediaType": "image/png", "durationMs": 10000,
		}}}, nil)
		return d
	}
	good := &neighbour{display: enrol()}
	_, err := good.connect(doors[0])
	require.NoError(t, err)
	t.Cleanup(func() { good.client.Disconnect(0) })
	during := func(t *testing.T, ended <-chan struct{}) {
		t.Helper()
		for {
			good.plays(t)
			select {
			case <-ended:
				good.plays(t)
				return
			case <-ctx.Done():
				require.NoError(t, context.Cause(ctx))
			case <-time.After(50 * time.Millisecond):
			}
		}
	}

	t.Run("HalfOpen", func(t *testing.T) {
		var files syscall.Rlimit
		require.NoError(t, syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files))
		if files.Cur < halfOpen+2000 {
			t.Skipf("this opens %d connections, and the process may have %d files: ulimit -n", halfOpen, files.Cur)
		}
		newcomer := enrol()
		all := make([]net.Conn, halfOpen)
		flooded, stop := floodDoor(ctx, doors[0], all)
		t.Cleanup(stop)
		during(t, flooded)
		took := scenario.Eventually(ctx, t, newcomerWithin, "another display is let in", func() error {
			_, err := newcomer.connect(doors[0])
			return err
		})
		newcomer.client.Disconnect(0)
		t.Logf("%d connections that say nothing: another display was let in %s after them", halfOpen, took.Round(time.Millisecond))
		// None is left after the time that a display has.
		closed := make(chan struct{})
		var left atomic.Int64
		go func() {
			defer close(closed)
			for _, conn := range all {
				if conn == nil {
					continue
				}
				_ = conn.SetReadDeadline(time.Now().Add(2 * replyWithin))
				_, err := io.Copy(io.Discard, conn)
				if failed := (net.Error)(nil); errors.As(err, &failed) && failed.Timeout() {
					left.Add(1)
				}
			}
		}()
		during(t, closed)
		require.Zero(t, left.Load(), "connections that say nothing stay")
	})

	t.Run("Flood", func(t *testing.T) {
		const lasts = 2 * time.Second
		d := enrol()
		conn := d.enter(t, ctx, doors[0])
		defer conn.Close()
		began := time.Now()
		ended := make(chan struct{})
		var sent atomic.Int64
		go func() {
			defer close(ended)
			pings := []byte(strings.Repeat("\xc0\x00", 512))
			for time.Since(began) < lasts {
				_ = conn.SetWriteDeadline(began.Add(lasts)) // it is read more slowly
				n, err := conn.Write(pings)
				sent.Add(int64(n / 2))
				if err != nil {
					return
				}
			}
		}()
		during(t, ended)
		answered := 0
		require.NoError(t, conn.SetReadDeadline(time.Now().Add(100*time.Millisecond)))
		for buffer := make([]byte, 1024); ; {
			n, err := conn.Read(buffer)
			answered += n / 2
			if err != nil {
				break
			}
		}
		took := time.Since(began)
		t.Logf("%d packets were sent in %s, and %d answered", sent.Load(), took.Round(time.Millisecond), answered)
		require.Positive(t, answered)
		// 100 at once and 50 a second.
		require.LessOrEqual(t, answered, 100+int(50*took.Seconds())+10, "a flood is read as fast as it comes")
		require.Greater(t, sent.Load(), int64(2*answered), "this was no flood")
		// It is let go of at once, with all that was not read yet.
		o.do(t, ctx, http.MethodPost, o.on("/"+d.id+":revoke"), struct{}{}, nil)
		scenario.Eventually(ctx, t, 5*time.Second, "it is out", func() error {
			if online, _ := o.presence(t, ctx, d.id); online {
				return errNotYet
			}
			return nil
		})
	})

	t.Run("NoReader", func(t *testing.T) {
		d := enrol()
		conn := d.enter(t, ctx, doors[0])
		defer conn.Close()
		subscribe, ok := packets.NewControlPacket(packets.Subscribe).(*packets.SubscribePacket)
		require.True(t, ok)
		subscribe.MessageID, subscribe.Topics, subscribe.Qoss = 1, []string{"d/" + d.id + "/down/#"}, []byte{1}
		require.NoError(t, subscribe.Write(conn))
		began := time.Now()
		scenario.Eventually(ctx, t, 30*time.Second, "who reads and acknowledges nothing is disconnected", func() error {
			o.show(t, ctx, d.id, fmt.Sprint("creative-", time.Now().UnixNano()), "https://media.example.com/"+strings.Repeat("0", 64))
			good.plays(t)
			if online, _ := o.presence(t, ctx, d.id); online {
				return errNotYet
			}
			return nil
		})
		t.Logf("who reads and acknowledges nothing was disconnected after %s", time.Since(began).Round(time.Millisecond))
	})

	topic := "d/" + good.id + "/up/plays"
	require.Len(t, topic, 0x29)
	for name, bytes := range map[string]string{
		"Zeros": strings.Repeat("\x00", 100), "HTTP": "POST / HTTP/1.1\r\nHost: x\r\n\r\n", "TLS": "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
		"Endless": "\x10\xff\xff\xff\x7f" + strings.Repeat("x", 70<<10), "NotItsTurn": "\xc0\x00", "Header": "PROXY TCP4 203.0.113.7 192.0.2.1 4711 1883\r\n",
		"AnothersPlays": "\x30\x2d\x00\x29" + topic + "{}",
	} {
		t.Run("Malformed/"+name, func(t *testing.T) {
			conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", doors[1])
			require.NoError(t, err)
			defer conn.Close()
			requireEnded(t, conn, bytes+strings.Repeat("x", 200))
			good.plays(t)
		})
	}
	t.Run("TooLarge", func(t *testing.T) {
		d := enrol()
		conn := d.enter(t, ctx, doors[1])
		defer conn.Close()
		publish, ok := packets.NewControlPacket(packets.Publish).(*packets.PublishPacket)
		require.True(t, ok)
		publish.Qos, publish.MessageID, publish.TopicName, publish.Payload = 1, 1, "d/"+d.id+"/up/plays", make([]byte, 65<<10)
		var packet strings.Builder
		require.NoError(t, publish.Write(&packet))
		requireEnded(t, conn, packet.String())
		good.plays(t)
	})

	t.Run("Guesses", func(t *testing.T) {
		gateways, _ := bothGateways(t, ctx)
		elsewhere := &http.Client{Transport: &http.Transport{
			DialContext: (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 2, 1, 1)}}).DialContext,
		}}
		defer elsewhere.CloseIdleConnections()
		guess := func(n int) (status int, reason, retryAfter string) {
			request, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+gateways[n%2].HTTP+"/v1/devices:claim", strings.NewReader(`{"claimCode":"2345222`+"23456789ABCDEFGHJKMNPQRSTUVWXYZ"[n:n+1]+`"}`))
			require.NoError(t, err)
			request.Header.Set("Content-Type", "application/json")
			response, err := elsewhere.Do(request)
			require.NoError(t, err)
			defer response.Body.Close()
			var problem struct{ Reason string }
			require.NoError(t, json.NewDecoder(response.Body).Decode(&problem))
			return response.StatusCode, problem.Reason, response.Header.Get("Retry-After")
		}
		for n := 0; ; n++ {
			require.Less(t, n, 30, "nobody is throttled")
			status, reason, retryAfter := guess(n)
			if status == http.StatusTooManyRequests {
				require.Equal(t, "CLAIMS_THROTTLED", reason)
				require.NotEmpty(t, retryAfter)
				t.Logf("throttled after %d wrong codes", n)
				break
			}
			require.Equal(t, [2]any{http.StatusUnauthorized, "CLAIM_CODE_INVALID"}, [2]any{status, reason})
		}
		enrol() // from another address
	})

	_, counted := o.plays(t, ctx, good.id)
	require.EqualValues(t, good.made, counted, "plays of the display that did nothing wrong")
	t.Logf("meanwhile another display handed in %d plays; the longest acknowledgement took %s", good.made, good.longest.Round(time.Millisecond))
}

// floodDoor makes connections that never say who they are, as many as fit in all.
// The channel is closed when they are made; stop ends them.
func floodDoor(ctx context.Context, door string, all []net.Conn) (flooded <-chan struct{}, stop func()) {
	const callers = 16
	var flooding sync.WaitGroup
	for caller := range callers {
		flooding.Go(func() {
			for n := caller; n < len(all) && ctx.Err() == nil; n += callers {
				dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 2, 0, byte(1+n%halfOpenFrom))}, Timeout: replyWithin}
				conn, err := dialer.DialContext(ctx, "tcp", door)
				if err != nil {
					continue // it is refused, which is as good
				}
				all[n] = conn
				if n%2 == 0 {
					_, _ = io.WriteString(conn, "\x10\x20\x00\x04MQTT\x04") // it may be ended by now
				}
			}
		})
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		flooding.Wait()
	}()
	return ended, func() {
		<-ended
		for _, conn := range all {
			if conn != nil {
				conn.Close()
			}
		}
	}
}

// enter connects by hand, so that what follows can be anything.
func (d *display) enter(t *testing.T, ctx context.Context, door string) net.Conn {
	t.Helper()
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", door)
	require.NoError(t, err)
	require.NoError(t, conn.SetDeadline(time.Now().Add(replyWithin)))
	hello, ok := packets.NewControlPacket(packets.Connect).(*packets.ConnectPacket)
	require.True(t, ok)
	hello.ProtocolName, hello.ProtocolVersion, hello.CleanSession, hello.Keepalive = "MQTT", 4, true, 60
	hello.UsernameFlag, hello.Username, hello.PasswordFlag, hello.Password = true, d.id, true, []byte(d.secret)
	require.NoError(t, hello.Write(conn))
	answer, err := packets.ReadPacket(conn)
	require.NoError(t, err)
	connack, ok := answer.(*packets.ConnackPacket)
	require.True(t, ok, "%s", answer)
	require.Equal(t, byte(packets.Accepted), connack.ReturnCode)
	require.NoError(t, conn.SetDeadline(time.Time{}))
	return conn
}

// requireEnded sends bytes and waits for the end of the connection.
func requireEnded(t *testing.T, conn net.Conn, bytes string) {
	t.Helper()
	require.NoError(t, conn.SetDeadline(time.Now().Add(2*replyWithin)))
	_, _ = io.WriteString(conn, bytes) // the service may have enough before the end
	_, err := io.Copy(io.Discard, conn)
	var failed net.Error
	require.False(t, errors.As(err, &failed) && failed.Timeout(), "the connection is not ended")
}

package main

import (
	"bufio"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/paho"
	mqtt3 "github.com/eclipse/paho.mqtt.golang"
	"github.com/oklog/ulid/v2"
	"github.com/stretchr/testify/require"

	"github.com/marquee-ads/marquee/platform/service"
	devicev1 "github.com/marquee-ads/marquee/proto/gen/marquee/device/v1"
)

const patience = 10 * time.Second

// message is what a player got.
type message struct {
	topic   string
	payload string
}

// player is a display's, over one of the two versions of MQTT.
type player interface {
	// subscribe returns the broker's answer: whether each filter was granted.
	subscribe(t *testing.T, filters ...string) []bool
	// publish at QoS 1 returns when it is acknowledged, or why it was not.
	publish(topic string, payload []byte) error
	messages() <-chan message
	// lost is closed when the broker ended the connection.
	lost() <-chan struct{}
	close()
}

// versions connects with each version of the protocol.
var versions = map[string]func(t *testing.T, address, user, password string) (player, error){
	"3.1.1": dial3,
	"5":     dial5,
}

type player3 struct {
	client mqtt3.Client
	got    chan message
	ended  chan struct{}
}

func dial3(t *testing.T, address, user, password string) (player, error) {
	t.Helper()
	p := &player3{got: make(chan message, 100), ended: make(chan struct{})}
	options := mqtt3.NewClientOptions().AddBroker("tcp://" + address).SetClientID("display").SetUsername(user).SetPassword(password).
		SetProtocolVersion(4).SetAutoReconnect(false).SetConnectRetry(false).SetKeepAlive(30 * time.Second).SetConnectTimeout(patience).
		SetDefaultPublishHandler(func(_ mqtt3.Client, m mqtt3.Message) { p.got <- message{m.Topic(), string(m.Payload())} }).
		SetConnectionLostHandler(func(mqtt3.Client, error) { close(p.ended) })
	p.client = mqtt3.NewClient(options)
	token := p.client.Connect()
	require.True(t, token.WaitTimeout(patience), "no answer to CONNECT")
	if token.Error() != nil {
		return nil, token.Error()
	}
	t.Cleanup(p.close)
	return p, nil
}

func (p *player3) subscribe(t *testing.T, filters ...string) (granted []bool) {
	t.Helper()
	wanted := make(map[string]byte)
	for _, f := range filters {
		wanted[f] = 1
	}
	token := p.client.SubscribeMultiple(wanted, nil)
	require.True(t, token.WaitTimeout(patience), "no answer to SUBSCRIBE")
	for _, f := range filters {
		granted = append(granted, token.(*mqtt3.SubscribeToken).Result()[f] < 0x80)
	}
	return granted
}

func (p *player3) publish(topic string, payload []byte) error {
	token := p.client.Publish(topic, 1, false, payload)
	select {
	case <-token.Done():
		return token.Error()
	case <-p.ended:
		return fmt.Errorf("the connection was ended")
	case <-time.After(patience):
		return fmt.Errorf("no acknowledgement within %s", patience)
	}
}

func (p *player3) messages() <-chan message { return p.got }
func (p *player3) lost() <-chan struct{}    { return p.ended }
func (p *player3) close()                   { p.client.Disconnect(0) }

type player5 struct {
	client *paho.Client
	got    chan message
	ended  chan struct{}
	reason chan byte
}

func dial5(t *testing.T, address, user, password string) (player, error) {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	require.NoError(t, err)
	p := &player5{got: make(chan message, 100), ended: make(chan struct{}), reason: make(chan byte, 1)}
	p.client = paho.NewClient(paho.ClientConfig{
		Conn: conn,
		OnPublishReceived: []func(paho.PublishReceived) (bool, error){func(r paho.PublishReceived) (bool, error) {
			p.got <- message{r.Packet.Topic, string(r.Packet.Payload)}
			return true, nil
		}},
		OnServerDisconnect: func(d *paho.Disconnect) { p.reason <- d.ReasonCode },
	})
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	expiry := uint32(3600)
	_, err = p.client.Connect(ctx, &paho.Connect{
		ClientID: "display", KeepAlive: 30, CleanStart: false, Username: user, UsernameFlag: true, Password: []byte(password), PasswordFlag: true,
		Properties: &paho.ConnectProperties{SessionExpiryInterval: &expiry},
	})
	if err != nil {
		return nil, err
	}
	go func() {
		<-p.client.Done()
		close(p.ended)
	}()
	t.Cleanup(p.close)
	return p, nil
}

func (p *player5) subscribe(t *testing.T, filters ...string) (granted []bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var all []paho.SubscribeOptions
	for _, f := range filters {
		all = append(all, paho.SubscribeOptions{Topic: f, QoS: 1})
	}
	ack, err := p.client.Subscribe(ctx, &paho.Subscribe{Subscriptions: all})
	require.NotNil(t, ack, "%v", err)
	for _, code := range ack.Reasons {
		granted = append(granted, code < 0x80)
	}
	return granted
}

func (p *player5) publish(topic string, payload []byte) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	answer := make(chan error, 1)
	go func() {
		_, err := p.client.Publish(ctx, &paho.Publish{Topic: topic, QoS: 1, Payload: payload})
		answer <- err
	}()
	select {
	case err := <-answer:
		return err
	case <-p.ended:
		return fmt.Errorf("the connection was ended")
	}
}

func (p *player5) messages() <-chan message { return p.got }
func (p *player5) lost() <-chan struct{}    { return p.ended }
func (p *player5) close()                   { _ = p.client.Disconnect(&paho.Disconnect{}) }

// each runs a test with both versions.
func each(t *testing.T, run func(t *testing.T, connect func(t *testing.T, address string, c *devicev1.Credentials) player)) {
	for version, dial := range versions {
		t.Run("MQTT"+version, func(t *testing.T) {
			run(t, func(t *testing.T, address string, c *devicev1.Credentials) player {
				t.Helper()
				p, err := dial(t, address, c.GetDeviceId(), c.GetSecret())
				require.NoError(t, err)
				return p
			})
		})
	}
}

// requestID is one for each version of a test.
func requestID(t *testing.T) string {
	return "request-" + strings.NewReplacer("/", "-", ".", "-").Replace(t.Name())
}

func ended(t *testing.T, p player, within time.Duration, why string) {
	t.Helper()
	select {
	case <-p.lost():
	case <-time.After(within):
		t.Fatalf("still connected after %s: %s", within, why)
	}
}

func next(t *testing.T, p player) message {
	t.Helper()
	select {
	case m := <-p.messages():
		return m
	case <-p.lost():
		t.Fatal("the connection was ended")
	case <-time.After(patience):
		t.Fatalf("no message within %s", patience)
	}
	return message{}
}

func (i *instance) online(t *testing.T, id string, want bool) {
	t.Helper()
	require.Eventually(t, func() bool { return i.get(t, id).GetPresence().GetOnline() == want },
		patience, 20*time.Millisecond, "presence does not become %v", want)
}

func TestConnect(t *testing.T) {
	i := newWorld(t).start(t)
	good, other := i.enrol(t, "request-1"), i.enrol(t, "request-2")
	unclaimed := i.create(t, "request-3").GetDeviceId()
	for version, dial := range versions {
		for name, c := range map[string][2]string{
			"ErrWrongSecret":    {good.GetDeviceId(), strings.Repeat("x", len(good.GetSecret()))},
			"ErrOthersSecret":   {good.GetDeviceId(), other.GetSecret()},
			"ErrNoSecret":       {good.GetDeviceId(), ""},
			"ErrUnclaimed":      {unclaimed, good.GetSecret()},
			"ErrUnknown":        {"dev_01ARZ3NDEKTSV4RRFFQ69G5FAV", good.GetSecret()},
			"ErrNoDevice":       {"", ""},
			"ErrWildcardDevice": {"+", good.GetSecret()},
		} {
			t.Run("MQTT"+version+"/"+name, func(t *testing.T) {
				_, err := dial(t, i.players, c[0], c[1])
				require.Error(t, err)
			})
		}
	}
	each(t, func(t *testing.T, connect func(*testing.T, string, *devicev1.Credentials) player) {
		require.False(t, i.get(t, good.GetDeviceId()).GetPresence().GetOnline())
		p := connect(t, i.players, good)
		i.online(t, good.GetDeviceId(), true)
		require.WithinDuration(t, time.Now(), i.get(t, good.GetDeviceId()).GetPresence().GetSinceTime().AsTime(), time.Minute)
		p.close()
		i.online(t, good.GetDeviceId(), false)
	})
}

// TestTopics tries each kind of topic and filter: a device has its own alone.
func TestTopics(t *testing.T) {
	i := newWorld(t).start(t)
	mine, other := i.enrol(t, "request-1"), i.enrol(t, "request-2")
	me, them := "d/"+mine.GetDeviceId(), "d/"+other.GetDeviceId()
	each(t, func(t *testing.T, connect func(*testing.T, string, *devicev1.Credentials) player) {
		victim := connect(t, i.players, other)
		require.Equal(t, []bool{true}, victim.subscribe(t, them+"/down/#"))
		p := connect(t, i.players, mine)
		for filter, want := range map[string]bool{
			me + "/down/#": true, me + "/down/+": true, me + "/down/playlist": true, me + "/down/plays": true, me + "/down/playlist/#": true,
			me + "/#": false, me + "/+/playlist": false, me + "/up/#": false, me + "/up/plays": false, me + "/down": false, me: false,
			them + "/down/#": false, them + "/down/playlist": false, them + "/up/plays": false,
			"#": false, "+": false, "d/#": false, "d/+/down/playlist": false, "+/" + mine.GetDeviceId() + "/down/playlist": false,
			"$SYS/#": false, "$share/group/" + me + "/down/#": false, "$share/group/" + them + "/down/#": false, "/" + me + "/down/#": false,
		} {
			require.Equal(t, []bool{want}, p.subscribe(t, filter), filter)
		}
		require.NoError(t, p.publish(me+"/up/anything", []byte("x")), "an unknown channel is acknowledged and goes nowhere")
		for _, topic := range []string{
			me + "/down/playlist", me + "/up", me, them + "/up/plays", them + "/down/playlist", them + "/down/plays", "$SYS/x", "d/up/plays", "x",
		} {
			q := connect(t, i.players, mine)
			require.Error(t, q.publish(topic, []byte(`{"version":9}`)), topic)
			q.close()
		}
		// Had one of them got through, it would be there before this.
		version := put(t, i, other.GetDeviceId(), t.Name()).GetVersion()
		for got := ""; !strings.Contains(got, fmt.Sprintf(`"version":%d,`, version)); {
			got = next(t, victim).payload
			require.Contains(t, got, `"creative_id":"TestTopics_MQTT`)
		}
		victim.close()
	})
}

// TestWill has a device leave a will in another's topics.
func TestWill(t *testing.T) {
	i := newWorld(t).start(t)
	mine, other := i.enrol(t, "request-1"), i.enrol(t, "request-2")
	victim, err := dial5(t, i.players, other.GetDeviceId(), other.GetSecret())
	require.NoError(t, err)
	topic := "d/" + other.GetDeviceId() + "/down/playlist"
	require.Equal(t, []bool{true}, victim.subscribe(t, topic))

	client := mqtt3.NewClient(mqtt3.NewClientOptions().AddBroker("tcp://"+i.players).SetUsername(mine.GetDeviceId()).SetPassword(mine.GetSecret()).
		SetProtocolVersion(4).SetAutoReconnect(false).SetWill(topic, "forged", 1, true))
	token := client.Connect()
	require.True(t, token.WaitTimeout(patience))
	require.NoError(t, token.Error())
	i.online(t, mine.GetDeviceId(), true)
	_, err = i.RevokeDevice(i.owner(t), &devicev1.RevokeDeviceRequest{OrganisationId: organisation, DeviceId: mine.GetDeviceId()})
	require.NoError(t, err)
	i.online(t, mine.GetDeviceId(), false)

	put(t, i, other.GetDeviceId(), "real")
	require.Contains(t, next(t, victim).payload, `"creative_id":"real"`)
}

// put gives a device one thing to play.
func put(t *testing.T, i *instance, id string, creatives ...string) *devicev1.Playlist {
	t.Helper()
	req := &devicev1.PutDefaultPlaylistRequest{OrganisationId: organisation, DeviceId: id}
	for _, c := range creatives {
		req.Items = append(req.Items, &devicev1.PlaylistItem{
			CreativeId: strings.NewReplacer("/", "_", ".", "_").Replace(c), Url: "https://media.example/" + fmt.Sprint(len(c)), Sha256: strings.Repeat("0", 64), MediaType: "image/png", DurationMs: 10000,
		})
	}
	done, err := i.PutDefaultPlaylist(i.owner(t), req)
	require.NoError(t, err)
	return done.GetPlaylist()
}

func TestTakeOver(t *testing.T) {
	w := newWorld(t)
	one, two := w.start(t), w.start(t)
	each(t, func(t *testing.T, connect func(*testing.T, string, *devicev1.Credentials) player) {
		device := one.enrol(t, requestID(t))
		first := connect(t, one.players, device)
		second := connect(t, one.players, device)
		ended(t, first, patience, "it connected again at the same instance")
		one.online(t, device.GetDeviceId(), true)
		third := connect(t, two.players, device)
		ended(t, second, patience, "it connected again at another instance")
		fourth := connect(t, one.players, device)
		ended(t, third, patience, "it connected again at another instance")
		require.Equal(t, []bool{true}, fourth.subscribe(t, "d/"+device.GetDeviceId()+"/down/#"))
		version := put(t, two, device.GetDeviceId(), t.Name()).GetVersion()
		require.Contains(t, next(t, fourth).payload, fmt.Sprintf(`"version":%d`, version), "who took over is served")
		two.online(t, device.GetDeviceId(), true)
		fourth.close()
		two.online(t, device.GetDeviceId(), false)
	})
}

func TestRevocation(t *testing.T) {
	w := newWorld(t)
	one, two := w.start(t), w.start(t)
	each(t, func(t *testing.T, connect func(*testing.T, string, *devicev1.Credentials) player) {
		device := one.enrol(t, requestID(t))
		id := device.GetDeviceId()
		p := connect(t, one.players, device)
		rotated, err := two.RotateCredentials(two.owner(t), &devicev1.RotateCredentialsRequest{OrganisationId: organisation, DeviceId: id})
		require.NoError(t, err)
		ended(t, p, patience, "its credentials were rotated")
		_, err = versions["5"](t, one.players, id, device.GetSecret())
		require.Error(t, err, "the old credentials")

		p = connect(t, one.players, rotated.GetCredentials())
		reclaimed := two.claim(t, id)
		ended(t, p, patience, "another player claimed the device")

		p = connect(t, one.players, reclaimed)
		_, err = two.RevokeDevice(two.owner(t), &devicev1.RevokeDeviceRequest{OrganisationId: organisation, DeviceId: id})
		require.NoError(t, err)
		ended(t, p, patience, "the device was revoked")
		_, err = versions["5"](t, two.players, id, reclaimed.GetSecret())
		require.Error(t, err, "revoked credentials")

		again := two.claim(t, id)
		p = connect(t, two.players, again)
		_, err = one.DeleteDevice(one.owner(t), &devicev1.DeleteDeviceRequest{OrganisationId: organisation, DeviceId: id})
		require.NoError(t, err)
		ended(t, p, patience, "the device was deleted")
	})
}

// unscheduled is a playlist without its schedule, which it must have.
func unscheduled(t *testing.T, payload string) string {
	t.Helper()
	var members map[string]json.RawMessage
	require.NoError(t, json.Unmarshal([]byte(payload), &members))
	var periods []map[string]any
	require.NoError(t, json.Unmarshal(members["schedule"], &periods))
	for _, p := range periods {
		for _, member := range []string{"from", "until", "loop"} {
			require.Contains(t, p, member)
		}
		require.Len(t, p, 3)
	}
	delete(members, "schedule")
	text, err := json.Marshal(members)
	require.NoError(t, err)
	return string(text)
}

func TestPlaylist(t *testing.T) {
	w := newWorld(t)
	one, two := w.start(t), w.start(t)
	each(t, func(t *testing.T, connect func(*testing.T, string, *devicev1.Credentials) player) {
		device := one.enrol(t, requestID(t))
		id := device.GetDeviceId()
		topic := "d/" + id + "/down/playlist"
		require.EqualValues(t, 1, put(t, one, id, "a").GetVersion())
		require.EqualValues(t, 1, put(t, one, id, "a").GetVersion(), "the same items make a version")
		p := connect(t, one.players, device)
		require.Equal(t, []bool{true}, p.subscribe(t, topic))
		first := next(t, p)
		require.Equal(t, topic, first.topic)
		require.JSONEq(t, fmt.Sprintf(`{"device_id":%q,"version":1,"items":[{"creative_id":"a","url":"https://media.example/1","sha256":%q,"media_type":"image/png","duration_ms":10000}]}`,
			id, strings.Repeat("0", 64)), unscheduled(t, first.payload))

		// Through the instance that does not hold the connection.
		began := time.Now()
		require.EqualValues(t, 2, put(t, two, id, "a", "b").GetVersion())
		require.Contains(t, next(t, p).payload, `"version":2`)
		t.Logf("a change made at another instance arrived %s after it was asked for", time.Since(began))
		require.EqualValues(t, 3, put(t, two, id).GetVersion())
		require.JSONEq(t, fmt.Sprintf(`{"device_id":%q,"version":3,"items":[]}`, id), unscheduled(t, next(t, p).payload))
		p.close()

		// What changes meanwhile is there on the next connection.
		put(t, two, id, "c")
		q := connect(t, two.players, device)
		require.Equal(t, []bool{true}, q.subscribe(t, "d/"+id+"/down/#"))
		require.Contains(t, next(t, q).payload, `"version":4`)
	})

	id := one.create(t, "request-x").GetDeviceId()
	for name, items := range map[string][]*devicev1.PlaylistItem{
		"ErrLongerThanSlot": {{CreativeId: "a", Url: "https://media.example/a", Sha256: strings.Repeat("0", 64), MediaType: "image/png", DurationMs: 10001}},
		"ErrOthersPath":     {{CreativeId: "a", Url: "/v1/media/" + strings.Repeat("1", 64), Sha256: strings.Repeat("0", 64), MediaType: "image/png", DurationMs: 1000}},
		"ErrOtherPath":      {{CreativeId: "a", Url: "/v2/media/" + strings.Repeat("0", 64), Sha256: strings.Repeat("0", 64), MediaType: "image/png", DurationMs: 1000}},
		"ErrNotAHash":       {{CreativeId: "a", Url: "https://media.example/a", Sha256: "0", MediaType: "image/png", DurationMs: 1000}},
		"ErrNoCreative":     {{Url: "https://media.example/a", Sha256: strings.Repeat("0", 64), MediaType: "image/png", DurationMs: 1000}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := one.PutDefaultPlaylist(one.owner(t), &devicev1.PutDefaultPlaylistRequest{OrganisationId: organisation, DeviceId: id, Items: items})
			require.Error(t, err)
			none, err := one.GetPlaylist(one.owner(t), &devicev1.GetPlaylistRequest{OrganisationId: organisation, DeviceId: id})
			require.NoError(t, err)
			require.Zero(t, none.GetPlaylist().GetVersion())
		})
	}
}

// receipt is what became of a batch.
type receipt struct {
	BatchID    string `json:"batch_id"`
	Accepted   int    `json:"accepted"`
	Duplicate  int    `json:"duplicate"`
	Rejected   int    `json:"rejected"`
	Rejections []struct {
		ID     string `json:"id"`
		Reason string `json:"reason"`
	} `json:"rejections"`
}

func play(at time.Time, creative string, duration int) string {
	return fmt.Sprintf(`{"id":%q,"creative_id":%q,"duration_ms":%d}`, ulid.MustNew(ulid.Timestamp(at), ulid.DefaultEntropy()).String(), creative, duration)
}

func batch(id string, plays ...string) []byte {
	return fmt.Appendf(nil, `{"batch_id":%q,"plays":[%s]}`, id, strings.Join(plays, ","))
}

func TestPlays(t *testing.T) {
	i := newWorld(t).start(t)
	each(t, func(t *testing.T, connect func(*testing.T, string, *devicev1.Credentials) player) {
		device := i.enrol(t, requestID(t))
		id := device.GetDeviceId()
		put(t, i, id, "a", "b")
		p := connect(t, i.players, device)
		require.Equal(t, []bool{true}, p.subscribe(t, "d/"+id+"/down/plays"))
		send := func(payload []byte) receipt {
			t.Helper()
			require.NoError(t, p.publish("d/"+id+"/up/plays", payload))
			var r receipt
			require.NoError(t, json.Unmarshal([]byte(next(t, p).payload), &r))
			return r
		}
		hour := time.Now().UTC().Add(-48 * time.Hour).Truncate(time.Hour)
		full, short, late := play(hour.Add(time.Minute), "a", 9500), play(hour.Add(2*time.Minute), "a", 9499), play(hour.Add(time.Hour), "b", 10000)
		require.Equal(t, receipt{BatchID: "one", Accepted: 2}, send(batch("one", full, short)))
		// Repeated, in another order, and mixed with what is new.
		require.Equal(t, receipt{BatchID: "two", Accepted: 1, Duplicate: 2}, send(batch("two", short, late, full)))
		require.Equal(t, receipt{BatchID: "one", Duplicate: 2}, send(batch("one", full, short)))
		require.Equal(t, receipt{BatchID: "twice", Accepted: 1, Duplicate: 1}, func() receipt {
			again := play(hour.Add(3*time.Minute), "a", 10000)
			return send(batch("twice", again, again))
		}())

		now := time.Now()
		for name, c := range map[string]struct{ play, reason string }{
			"UnknownCreative": {play(now, "c", 10000), "UNKNOWN_CREATIVE"},
			"AYearAhead":      {play(now.AddDate(1, 0, 0), "a", 10000), "IN_THE_FUTURE"},
			"SixMinutesAhead": {play(now.Add(6*time.Minute), "a", 10000), "IN_THE_FUTURE"},
			"AYearBehind":     {play(now.AddDate(-1, 0, 0), "a", 10000), "TOO_OLD"},
			"ThirtyOneDays":   {play(now.AddDate(0, 0, -31), "a", 10000), "TOO_OLD"},
			"LongerThanSlot":  {play(now, "a", 10501), "TOO_LONG"},
			"NoDuration":      {play(now, "a", 0), "MALFORMED"},
			"Negative":        {play(now, "a", -1), "MALFORMED"},
			"NoID":            {`{"creative_id":"a","duration_ms":1}`, "MALFORMED"},
			"LowerCaseID":     {strings.ToLower(play(now, "a", 10000)), "MALFORMED"},
			"NUL":             {`{"id":"\u0000","creative_id":"\u0000","duration_ms":1}`, "MALFORMED"},
			"NotAnObject":     {`7`, "MALFORMED"},
		} {
			t.Run(name, func(t *testing.T) {
				// It does not stand in the way of the one behind it.
				r := send(batch(name, c.play, play(now.Add(-time.Minute), "b", 10000)))
				require.Equal(t, [3]int{1, 0, 1}, [3]int{r.Accepted, r.Duplicate, r.Rejected})
				require.Equal(t, c.reason, r.Rejections[0].Reason)
			})
		}
		for name, payload := range map[string]string{
			"NotJSON": "plays", "Empty": "", "NoPlays": `{"batch_id":"x","plays":[]}`, "Binary": "\xff\x00\xfe", "Array": "[]",
			"TooMany": string(batch("x", strings.Split(strings.TrimSuffix(strings.Repeat(`{};`, 201), ";"), ";")...)),
		} {
			t.Run(name, func(t *testing.T) {
				r := send([]byte(payload))
				require.Equal(t, 1, r.Rejected)
				require.Equal(t, "MALFORMED", r.Rejections[0].Reason)
			})
		}
		require.Equal(t, 1, send(batch("fiveAhead", play(time.Now().Add(4*time.Minute), "a", 10000))).Accepted)

		sums, err := i.ListPlays(i.owner(t), &devicev1.ListPlaysRequest{OrganisationId: organisation, DeviceId: id})
		require.NoError(t, err)
		got := make(map[string][3]int64)
		for _, h := range sums.GetHours() {
			got[h.GetHourTime().AsTime().Format(time.RFC3339)+" "+h.GetCreativeId()] = [3]int64{h.GetPlays(), h.GetCountedPlays(), h.GetDurationMs()}
		}
		require.Equal(t, [3]int64{3, 2, 9500 + 9499 + 10000}, got[hour.Format(time.RFC3339)+" a"])
		require.Equal(t, [3]int64{1, 1, 10000}, got[hour.Add(time.Hour).Format(time.RFC3339)+" b"])
		var paged []*devicev1.HourOfPlays
		req := &devicev1.ListPlaysRequest{OrganisationId: organisation, DeviceId: id, PageSize: 1}
		for {
			page, err := i.ListPlays(i.owner(t), req)
			require.NoError(t, err)
			paged = append(paged, page.GetHours()...)
			if req.PageToken = page.GetNextPageToken(); req.GetPageToken() == "" {
				break
			}
		}
		require.Equal(t, fmt.Sprint(sums.GetHours()), fmt.Sprint(paged))
	})
}

// certificate writes a pair for 127.0.0.1 and returns who trusts it.
func certificate(t *testing.T, certFile, keyFile string) *x509.CertPool {
	t.Helper()
	public, private, err := ed25519.GenerateKey(rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, public, private)
	require.NoError(t, err)
	key, err := x509.MarshalPKCS8PrivateKey(private)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(certFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600))
	require.NoError(t, os.WriteFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}), 0o600))
	parsed, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	pool := x509.NewCertPool()
	pool.AddCert(parsed)
	return pool
}

// TestTLS connects over TLS, also after the certificate was renewed.
func TestTLS(t *testing.T) {
	certFile, keyFile := t.TempDir()+"/cert.pem", t.TempDir()+"/key.pem"
	trusted := certificate(t, certFile, keyFile)
	i := newWorld(t).start(t, "--mqtt-certificate-file", certFile, "--mqtt-key-file", keyFile)
	device := i.enrol(t, "request-1")
	connect := func(trusted *x509.CertPool) error {
		client := mqtt3.NewClient(mqtt3.NewClientOptions().AddBroker("ssl://" + i.players).SetTLSConfig(&tls.Config{RootCAs: trusted}).
			SetUsername(device.GetDeviceId()).SetPassword(device.GetSecret()).SetProtocolVersion(4).SetAutoReconnect(false).SetConnectTimeout(patience))
		token := client.Connect()
		require.True(t, token.WaitTimeout(patience))
		if token.Error() == nil {
			i.online(t, device.GetDeviceId(), true)
			client.Disconnect(0)
		}
		return token.Error()
	}
	require.NoError(t, connect(trusted))
	renewed := certificate(t, certFile, keyFile)
	require.Error(t, connect(trusted))
	require.NoError(t, connect(renewed))

	_, err := dialPlain(i.players)
	require.Error(t, err, "it answers without TLS")
}

// dialPlain sends a CONNECT without TLS and waits for an answer to it.
func dialPlain(address string) (byte, error) {
	conn, err := net.Dial("tcp", address)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return 0, err
	}
	if _, err := conn.Write([]byte("\x10\x0e\x00\x04MQTT\x04\x02\x00\x3c\x00\x02me")); err != nil {
		return 0, err
	}
	answer := make([]byte, 1)
	if _, err := io.ReadFull(conn, answer); err != nil {
		return 0, err
	}
	// The alert of TLS is no answer of MQTT.
	if answer[0] == 0x15 {
		return 0, fmt.Errorf("a TLS alert")
	}
	return answer[0], nil
}

func TestConfig(t *testing.T) {
	for name, c := range map[string]struct{ args, text string }{
		"Address":    {"--mqtt-listen=nowhere", "--mqtt-listen"},
		"OnePEM":     {"--mqtt-key-file=key", "--mqtt-certificate-file: it and --mqtt-key-file belong together"},
		"Plaintext":  {"--mode=production --environment=eu --mqtt-listen=10.0.0.1:1883", "unencrypted"},
		"NoPlayers":  {"--mqtt-connections=0", "0 connections"},
		"NoPassword": {"", "--database-password-file: is needed"},
		"NoNATS":     {"", "--nats-password-file: is needed"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := service.Parse[config]("device", strings.Fields(c.args), io.Discard)
			require.ErrorContains(t, err, c.text)
		})
	}
	_, err := service.Parse[config]("device", strings.Fields("--mode=production --environment=eu --mqtt-listen=127.0.0.1:1883 --database-password-file=x --nats-password-file=x"), io.Discard)
	require.NoError(t, err)
}

// TestMosquitto runs the commands of docs/device-protocol.md as they are printed.
func TestMosquitto(t *testing.T) {
	for _, tool := range []string{"mosquitto_pub", "mosquitto_sub", "bash"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("%s is not installed (Debian: mosquitto-clients)", tool)
		}
	}
	document, err := os.ReadFile("../../../../docs/device-protocol.md")
	require.NoError(t, err)
	commands := make(map[string]string) // by what they do with which topic
	for _, found := range regexp.MustCompile(`(?m)^mosquitto_(?:pub|sub)(?:.*\\\n)*.*$`).FindAllString(string(document), -1) {
		topic := regexp.MustCompile(`-t "d/\$DEVICE/([^"]*)"`).FindStringSubmatch(found)
		require.Len(t, topic, 2, found)
		require.Empty(t, commands[topic[1]], "two commands with one topic")
		commands[topic[1]] = found
	}
	require.Len(t, commands, 4, "%v", commands)
	i := newWorld(t).start(t)
	device := i.enrol(t, "request-1")
	id := device.GetDeviceId()
	host, port, err := net.SplitHostPort(i.players)
	require.NoError(t, err)
	put(t, i, id, "spring-sale")
	ctx, cancel := context.WithTimeout(context.Background(), 3*patience)
	defer cancel()
	command := func(topic string, env ...string) *exec.Cmd {
		c := exec.CommandContext(ctx, "bash", "-c", "exec "+commands[topic])
		c.Env = append(append(os.Environ(), "HOST="+host, "PORT="+port, "DEVICE="+id, "SECRET="+device.GetSecret()), env...)
		c.Stderr = os.Stderr
		return c
	}
	listens := command("down/#")
	out, err := listens.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, listens.Start())
	leave := sync.OnceFunc(func() {
		_ = listens.Process.Kill()
		_ = listens.Wait() // it was killed
	})
	defer leave()
	lines := bufio.NewScanner(out)
	require.True(t, lines.Scan(), "no playlist")
	require.Contains(t, lines.Text(), "d/"+id+`/down/playlist {"device_id":`)
	require.Contains(t, lines.Text(), `"version":1,`)
	put(t, i, id, "spring-sale", "other")
	require.True(t, lines.Scan(), "no change")
	require.Contains(t, lines.Text(), `"version":2,`)

	send := func(requestID string) string {
		t.Helper()
		sent, err := i.SendCommand(i.owner(t), &devicev1.SendCommandRequest{
			OrganisationId: organisation, DeviceId: id, RequestId: requestID, Kind: devicev1.CommandKind_COMMAND_KIND_IDENTIFY,
		})
		require.NoError(t, err)
		return sent.GetCommand().GetCommandId()
	}
	first := send("identify-1")
	require.True(t, lines.Scan(), "no command")
	require.Equal(t, "d/"+id+`/down/commands {"command_id":"`+first+`","kind":"IDENTIFY","duration_ms":10000}`, lines.Text())
	leave() // it would come back, and take over
	waiting, err := command("down/commands").Output()
	require.NoError(t, err)
	require.JSONEq(t, `{"command_id":"`+first+`","kind":"IDENTIFY","duration_ms":10000}`, string(waiting), "it is sent again while there is no reply")
	require.NoError(t, command("up/commands", "COMMAND="+first).Run())
	done := i.command(t, id, first)
	require.Equal(t, devicev1.CommandState_COMMAND_STATE_DONE, done.GetState())
	require.Equal(t, "a blue screen", done.GetDetail())

	require.NoError(t, command("up/plays", "PLAY="+ulid.Make().String()).Run())
	sums, err := i.ListPlays(i.owner(t), &devicev1.ListPlaysRequest{OrganisationId: organisation, DeviceId: id})
	require.NoError(t, err)
	require.Len(t, sums.GetHours(), 1)
	require.EqualValues(t, 1, sums.GetHours()[0].GetCountedPlays())
}

// TestStorm has many devices connect again and again, at either instance and
// without closing what they had: of each the last connection stays, and is served.
func TestStorm(t *testing.T) {
	w := newWorld(t)
	both := []*instance{w.start(t), w.start(t)}
	const devices, times = 40, 6
	at := func(device, connection int) int { return (device + connection*connection) % 2 }
	var enrolled []*devicev1.Credentials
	for n := range devices {
		enrolled = append(enrolled, both[0].enrol(t, fmt.Sprint("request-", n)))
	}
	last, problems := make([]player, devices), make([][]string, devices)
	var all sync.WaitGroup
	for n, c := range enrolled {
		all.Go(func() {
			var before []player
			for k := range times {
				dial := dial3
				if (n+k)%3 == 0 {
					dial = dial5
				}
				p, err := dial(t, both[at(n, k)].players, c.GetDeviceId(), c.GetSecret())
				if err != nil {
					problems[n] = append(problems[n], fmt.Sprintf("connection %d: %v", k, err))
					return
				}
				before = append(before, p)
			}
			for k, p := range before[:times-1] {
				select {
				case <-p.lost():
				case <-time.After(patience):
					problems[n] = append(problems[n], fmt.Sprintf("connection %d is still there", k))
				}
			}
			last[n] = before[times-1]
		})
	}
	all.Wait()
	for n, c := range enrolled {
		require.Empty(t, problems[n], "device %d", n)
		require.Equal(t, []bool{true}, last[n].subscribe(t, "d/"+c.GetDeviceId()+"/down/playlist"))
		put(t, both[n%2], c.GetDeviceId(), "a")
		require.Contains(t, next(t, last[n]).payload, `"version":1,`)
		both[0].online(t, c.GetDeviceId(), true)
	}
	// One instance stops: its players are told, and come back at the other.
	both[1].stop()
	for n, c := range enrolled {
		if at(n, times-1) == 0 {
			continue
		}
		ended(t, last[n], patience, "its instance has stopped")
		p, err := dial5(t, both[0].players, c.GetDeviceId(), c.GetSecret())
		require.NoError(t, err)
		last[n] = p
	}
	for n, c := range enrolled {
		both[0].online(t, c.GetDeviceId(), true)
		require.NoError(t, last[n].publish("d/"+c.GetDeviceId()+"/up/plays", batch("x", play(time.Now(), "a", 10000))))
	}
}

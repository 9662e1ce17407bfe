package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	mqtt "github.com/eclipse/paho.mqtt.golang"
	consulapi "github.com/hashicorp/consul/api"
	"github.com/oklog/ulid/v2"
	"github.com/stretchr/testify/require"

	"github.com/marquee-ads/marquee/e2e/load"
	"github.com/marquee-ads/marquee/e2e/scenario"
)

// owner is somebody who owns an organisation of displays, over REST.
type owner struct {
	doors        scenario.Doors
	token        string
	organisation string
	// shared is the owner for what other packages' scenarios do, too.
	shared *scenario.Owner
}

// newOwner signs up and makes the organisation.
func newOwner(t *testing.T, ctx context.Context) *owner {
	t.Helper()
	return ownerThrough(t, ctx, openDoors(t, ctx))
}

// ownerThrough is newOwner through these doors.
func ownerThrough(t *testing.T, ctx context.Context, doors scenario.Doors) *owner {
	t.Helper()
	made := scenario.NewOwner(ctx, t, doors)
	token, err := made.Token(ctx)
	require.NoError(t, err)
	return &owner{doors: doors, token: token, organisation: made.Organisation, shared: made}
}

func (o *owner) do(t *testing.T, ctx context.Context, method, path string, body, out any) {
	t.Helper()
	_, err := o.doors.REST.Do(ctx, load.Request{Method: method, Path: path, Token: o.token, Body: body, Idempotent: method == http.MethodGet}, out)
	require.NoError(t, err, "%s %s", method, path)
}

// on is the path of a device of the organisation.
func (o *owner) on(device string) string {
	return "/v1/organisations/" + o.organisation + "/devices" + device
}

// enrol makes a device and trades its claim code, as its player does.
func (o *owner) enrol(t *testing.T, ctx context.Context) *display {
	t.Helper()
	var made struct {
		Device struct {
			DeviceID string `json:"deviceId"`
		} `json:"device"`
	}
	o.do(t, ctx, http.MethodPost, o.on(""), map[string]any{"requestId": "device-" + ulid.Make().String(), "settings": map[string]any{
		"name": "Gate 7", "place": map[string]any{"latitude": 48.35, "longitude": 11.79, "address": "Terminal 2"},
		"venueType": "transit.airports.gates", "screen": map[string]any{"widthPx": 1080, "heightPx": 1920},
		"loopLengthSeconds": 60, "slotLengthSeconds": 10, "slotPrice": map[string]any{"amountMinor": 250, "currency": "EUR"}, "timeZone": "Europe/Berlin",
	}}, &made)
	var code struct {
		ClaimCode string `json:"claimCode"`
	}
	o.do(t, ctx, http.MethodPost, o.on("/"+made.Device.DeviceID+"/claim-code"), struct{}{}, &code)
	var claimed struct {
		Credentials struct {
			DeviceID string `json:"deviceId"`
			Secret   string `json:"secret"`
		} `json:"credentials"`
	}
	player := &owner{doors: o.doors} // who needs no token
	player.do(t, ctx, http.MethodPost, "/v1/devices:claim", map[string]string{"claimCode": code.ClaimCode}, &claimed)
	require.Equal(t, made.Device.DeviceID, claimed.Credentials.DeviceID)
	return &display{id: claimed.Credentials.DeviceID, secret: claimed.Credentials.Secret, got: make(chan mqtt.Message, 1000)}
}

// presence is whether a device is connected, and since when it is so.
func (o *owner) presence(t *testing.T, ctx context.Context, id string) (online bool, since time.Time) {
	t.Helper()
	var found struct {
		Device struct {
			Presence struct {
				Online    bool      `json:"online"`
				SinceTime time.Time `json:"sinceTime"`
			} `json:"presence"`
		} `json:"device"`
	}
	o.do(t, ctx, http.MethodGet, o.on("/"+id), nil, &found)
	return found.Device.Presence.Online, found.Device.Presence.SinceTime
}

// plays are how many plays of a device there are, and how many of them count.
func (o *owner) plays(t *testing.T, ctx context.Context, id string) (plays, counted int64) {
	t.Helper()
	var found struct {
		Hours []struct {
			Plays        int64 `json:"plays,string"`
			CountedPlays int64 `json:"countedPlays,string"`
		} `json:"hours"`
		NextPageToken string `json:"nextPageToken"`
	}
	o.do(t, ctx, http.MethodGet, o.on("/"+id+"/plays"), nil, &found)
	require.Empty(t, found.NextPageToken)
	for _, hour := range found.Hours {
		plays, counted = plays+hour.Plays, counted+hour.CountedPlays
	}
	return plays, counted
}

// instance is where players connect to one of the device service's.
type instance struct{ id, address string }

// brokers are the healthy instances that players can connect to.
func brokers(t *testing.T, ctx context.Context) []instance {
	t.Helper()
	entries, _, err := the.Cluster().Consul().Health().Service("device", "", true, (&consulapi.QueryOptions{RequireConsistent: true}).WithContext(ctx))
	require.NoError(t, err)
	var found []instance
	for _, e := range entries {
		require.NotEmpty(t, e.Service.Meta["mqtt"], "where do players connect to %s?", e.Service.ID)
		found = append(found, instance{e.Service.ID, e.Service.Meta["mqtt"]})
	}
	return found
}

// display is a player as docs/device-protocol.md has it: it keeps its plays until
// they are acknowledged, and comes back after a loss.
type display struct {
	id, secret string
	client     mqtt.Client
	lost       chan struct{}     // closed when the connection is
	got        chan mqtt.Message // of all connections
	kept       []string          // plays that are not acknowledged
	made       int               // plays, ever
}

// replyWithin is for how long a display waits for the service.
const replyWithin = 10 * time.Second

// notAuthorised is a CONNACK of MQTT 3.1.1: wrong or revoked credentials.
const notAuthorised = 5

// connect returns with which code the service answers; 0 is yes.
func (d *display) connect(address string) (code byte, err error) {
	lost := make(chan struct{})
	client := mqtt.NewClient(mqtt.NewClientOptions().AddBroker("tcp://" + address).SetClientID("display").SetUsername(d.id).SetPassword(d.secret).
		SetProtocolVersion(4).SetAutoReconnect(false).SetConnectRetry(false).SetKeepAlive(30 * time.Second).SetConnectTimeout(replyWithin).
		SetDefaultPublishHandler(func(_ mqtt.Client, m mqtt.Message) { d.got <- m }).
		SetConnectionLostHandler(func(mqtt.Client, error) { close(lost) }))
	token := client.Connect()
	if !token.WaitTimeout(replyWithin) {
		return 0, errors.New("no answer to CONNECT")
	}
	if connected, ok := token.(*mqtt.ConnectToken); ok {
		code = connected.ReturnCode()
	}
	if token.Error() != nil {
		return code, token.Error()
	}
	d.client, d.lost = client, lost
	subscribed := client.Subscribe("d/"+d.id+"/down/#", 1, nil)
	if !subscribed.WaitTimeout(replyWithin) {
		return code, errors.New("no answer to SUBSCRIBE")
	}
	return code, subscribed.Error()
}

// comeBack connects again as the protocol wants it: with a pause that doubles, to
// one address after the other. It returns the address.
func (d *display) comeBack(t *testing.T, ctx context.Context, addresses []string) string {
	t.Helper()
	pause := time.Second
	for n := 0; ; n++ {
		timer := time.NewTimer(time.Duration(float64(pause) * (0.5 + rand.Float64()))) //nolint:gosec // no secret
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			require.NoError(t, context.Cause(ctx), "the display does not get back")
		}
		pause = min(2*pause, time.Minute)
		address := addresses[n%len(addresses)]
		_, err := d.connect(address)
		if err == nil {
			return address
		}
		t.Logf("the display tried %s: %v", address, err)
	}
}

// play writes n plays down.
func (d *display) play(n int) {
	for range n {
		id := ulid.MustNew(ulid.Timestamp(time.Now().Add(-10*time.Second)), ulid.DefaultEntropy())
		d.kept = append(d.kept, fmt.Sprintf(`{"id":%q,"creative_id":"spring-sale","duration_ms":10000}`, id))
	}
	d.made += n
}

// publish sends a batch of plays, whose acknowledgement is the token's end.
func (d *display) publish(batch string, plays []string) mqtt.Token {
	return d.client.Publish("d/"+d.id+"/up/plays", 1, false, fmt.Sprintf(`{"batch_id":%q,"plays":[%s]}`, batch, strings.Join(plays, ",")))
}

// handIn sends what is kept and waits until it is acknowledged.
func (d *display) handIn(t *testing.T, batch string) {
	t.Helper()
	token := d.publish(batch, d.kept)
	select {
	case <-token.Done():
		require.NoError(t, token.Error())
	case <-d.lost:
		require.Fail(t, "the connection was lost")
	case <-time.After(replyWithin):
		require.Fail(t, "no PUBACK")
	}
	d.kept = nil
}

// hear waits for a message of a channel and decodes it.
func (d *display) hear(t *testing.T, ctx context.Context, channel string, into any) {
	t.Helper()
	for {
		select {
		case m := <-d.got:
			if strings.HasSuffix(m.Topic(), "/down/"+channel) {
				require.NoError(t, json.Unmarshal(m.Payload(), into))
				return
			}
		case <-ctx.Done():
			require.NoError(t, context.Cause(ctx), "nothing on %s", channel)
		}
	}
}

// receipt is what became of a batch.
type receipt struct {
	BatchID                       string `json:"batch_id"`
	Accepted, Duplicate, Rejected int
}

// A display is enrolled, connects, gets its playlist and hands in its plays; the
// instance that it is connected to dies, and no play is lost or counted twice.
func TestDevices(t *testing.T) {
	ctx := begin(t, 4*time.Minute)
	o := newOwner(t, ctx)
	d := o.enrol(t, ctx)
	found := brokers(t, ctx)
	require.Len(t, found, 2)
	t.Cleanup(func() {
		if d.client != nil {
			d.client.Disconnect(0)
		}
	})

	_, err := d.connect(found[0].address)
	require.NoError(t, err)
	online := func(after time.Time) time.Duration {
		t.Helper()
		return scenario.Eventually(ctx, t, 5*time.Second, "the display is shown as connected", func() error {
			if online, since := o.presence(t, ctx, d.id); !online || !since.After(after) {
				return fmt.Errorf("online: %v, since %s", online, since)
			}
			return nil
		})
	}
	online(time.Time{})

	var playlist struct {
		Version int64             `json:"version"`
		Items   []json.RawMessage `json:"items"`
	}
	put := func() {
		t.Helper()
		o.do(t, ctx, http.MethodPut, o.on("/"+d.id+"/playlist"), map[string]any{"items": []any{map[string]any{
			"creativeId": "spring-sale", "url": "https://media.example.com/spring-sale.png", "sha256": strings.Repeat("0", 64), "mediaType": "image/png", "durationMs": 10000,
		}}}, nil)
	}
	asked := time.Now()
	put()
	changed := time.Now()
	d.hear(t, ctx, "playlist", &playlist)
	require.LessOrEqual(t, time.Since(changed), time.Second, "the playlist takes too long")
	require.EqualValues(t, 1, playlist.Version)
	require.Len(t, playlist.Items, 1)
	t.Logf("the playlist arrived %s after it was asked for", time.Since(asked).Round(time.Millisecond))

	var r receipt
	for n := range 3 {
		d.play(10)
		d.handIn(t, fmt.Sprint("batch-", n))
		d.hear(t, ctx, "plays", &r)
		require.Equal(t, receipt{BatchID: fmt.Sprint("batch-", n), Accepted: 10}, r)
	}
	counts := func() {
		t.Helper()
		plays, counted := o.plays(t, ctx, d.id)
		require.Equal(t, [2]int64{int64(d.made), int64(d.made)}, [2]int64{plays, counted}, "plays, and those of them that count")
	}
	counts()

	// Five batches are under way when the instance dies: of some the plays are
	// stored and the acknowledgement is lost, others never arrived.
	dead := map[string]int{}
	for alloc, pid := range processes(t, "deviced") {
		if strings.Contains(found[0].id, alloc) {
			dead[alloc] = pid
		}
	}
	require.Len(t, dead, 1, "the process of %s", found[0].id)
	d.play(50)
	for n := range 5 {
		d.publish(fmt.Sprint("lost-", n), d.kept[10*n:10*n+10])
	}
	for _, pid := range dead {
		require.NoError(t, syscall.Kill(pid, syscall.SIGKILL))
	}
	died := time.Now()
	select {
	case <-d.lost:
	case <-time.After(replyWithin):
		require.Fail(t, "the display is still connected to an instance that died")
	}
	address := d.comeBack(t, ctx, []string{found[1].address, found[0].address})
	back := time.Now()
	require.Equal(t, found[1].address, address)
	shown := online(died)
	playlist.Version = 0
	d.hear(t, ctx, "playlist", &playlist)
	require.EqualValues(t, 1, playlist.Version, "on the next connection it is there, too")
	again := len(d.kept)
	d.handIn(t, "again")
	for r.BatchID != "again" {
		r = receipt{}
		d.hear(t, ctx, "plays", &r)
	}
	require.Equal(t, again, r.Accepted+r.Duplicate)
	require.Zero(t, r.Rejected)
	counts()
	t.Logf("killed the instance: the display was back on the other after %.1f s, shown so %.1f s later; of the %d plays under way %d had been stored",
		back.Sub(died).Seconds(), shown.Seconds(), again, r.Duplicate)

	d.play(20)
	twice := slices.Clone(d.kept)
	d.handIn(t, "after")
	d.kept = twice // as if the acknowledgement had been lost
	d.handIn(t, "twice")
	counts()
	recovery(t, ctx, "device", "deviced", 2, dead)
	t.Logf("both instances are healthy again after %.1f s", time.Since(died).Seconds())
	counts()
}

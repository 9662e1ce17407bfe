package e2e

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	mqtt "github.com/eclipse/paho.mqtt.golang"
	"github.com/oklog/ulid/v2"
	"github.com/stretchr/testify/require"

	"github.com/marquee-ads/marquee/e2e/scenario"
)

// outWithin is how soon a display is out that has no business there.
const outWithin = time.Second

// A display that is revoked or cloned is out within a second, at whichever gateway
// and instance it is, and a display reads and writes nobody else's topics.
func TestRevocation(t *testing.T) {
	ctx := begin(t, 2*time.Minute)
	o := newOwner(t, ctx)
	doors := displayDoors(t, ctx)
	require.Len(t, doors, 2)
	put := func(id, creative string) {
		t.Helper()
		o.do(t, ctx, http.MethodPut, o.on("/"+id+"/playlist"), map[string]any{"items": []any{map[string]any{
			"creativeId": creative, "url": "https://media.example.com/" + creative, "sha256": strings.Repeat("0", 64), "mediaType": "image/png", "durationMs": 10000,
		}}}, nil)
	}
	enter := func(d *display, door string) {
		t.Helper()
		_, err := d.connect(door)
		require.NoError(t, err)
		client := d.client
		t.Cleanup(func() { client.Disconnect(0) })
	}
	out := func(d *display, since time.Time, why string) {
		t.Helper()
		select {
		case <-d.lost:
		case <-time.After(replyWithin):
		}
		took := time.Since(since)
		require.LessOrEqual(t, took, outWithin, why)
		t.Logf("%s: out after %s", why, took.Round(time.Millisecond))
	}
	refused := func(d *display, addresses ...string) {
		t.Helper()
		for _, address := range addresses {
			code, err := d.connect(address)
			require.Error(t, err, "%s lets it in", address)
			require.EqualValues(t, notAuthorised, code, "%s: %v", address, err)
		}
	}

	victim, d := o.enrol(t, ctx), o.enrol(t, ctx)
	put(victim.id, "spring-sale")
	put(d.id, "spring-sale")
	enter(victim, doors[0])
	enter(d, doors[0])

	t.Run("OthersTopics", func(t *testing.T) {
		for _, filter := range []string{"d/" + victim.id + "/down/#", "d/" + victim.id + "/up/plays", "d/+/down/playlist", "d/#", "#", "$SYS/#", "$share/x/d/" + victim.id + "/down/#"} {
			token := d.client.SubscribeMultiple(map[string]byte{filter: 1}, nil)
			require.True(t, token.WaitTimeout(replyWithin), "no answer to SUBSCRIBE")
			granted, ok := token.(*mqtt.SubscribeToken)
			require.True(t, ok)
			require.Equal(t, map[string]byte{filter: 0x80}, granted.Result(), "read")
		}
		play := fmt.Sprintf(`{"batch_id":"x","plays":[{"id":%q,"creative_id":"spring-sale","duration_ms":10000}]}`, ulid.Make())
		for _, topic := range []string{"d/" + victim.id + "/up/plays", "d/" + victim.id + "/down/playlist", "d/" + d.id + "/down/playlist", "$SYS/x"} {
			sent := time.Now()
			d.client.Publish(topic, 1, false, play)
			out(d, sent, "who writes to "+topic)
			enter(d, doors[1])
		}
		plays, _ := o.plays(t, ctx, victim.id)
		require.Zero(t, plays, "another display has handed in plays for it")
		put(victim.id, "real")
		for got := ""; !strings.Contains(got, `"creative_id":"real"`); {
			select {
			case m := <-victim.got:
				got = string(m.Payload())
				require.Equal(t, "d/"+victim.id+"/down/playlist", m.Topic())
				require.Contains(t, got, `{"device_id":"`+victim.id+`","version":`, "something else got through")
			case <-victim.lost:
				require.Fail(t, "it has lost its connection by what another display did")
			case <-time.After(replyWithin):
				require.Fail(t, "it does not get its playlist")
			}
		}
	})

	clone := &display{id: d.id, secret: d.secret, got: make(chan mqtt.Message, 1000)}
	t.Run("Cloned", func(t *testing.T) {
		for _, door := range doors {
			enter(clone, door)
			out(d, time.Now(), "a clone connected")
			enter(d, doors[0])
			out(clone, time.Now(), "the display connected again")
		}
		var rotated struct{ Credentials struct{ Secret string } }
		asked := time.Now()
		o.do(t, ctx, http.MethodPost, o.on("/"+d.id+":rotate"), struct{}{}, &rotated)
		out(d, asked, "its credentials were rotated")
		refused(clone, doors...)
		d.secret = rotated.Credentials.Secret
		enter(d, doors[1])
		refused(clone, doors...)
		select {
		case <-d.lost:
			require.Fail(t, "a clone with old credentials puts the display out")
		default:
		}
		d.play(1)
		d.handIn(t, "mine")
	})

	t.Run("Revoked", func(t *testing.T) {
		asked := time.Now()
		o.do(t, ctx, http.MethodPost, o.on("/"+d.id+":revoke"), struct{}{}, nil)
		out(d, asked, "the display was revoked")
		refused(d, doors...)
		refused(clone, doors...)
		for _, i := range brokers(t, ctx) {
			refused(d, i.address)
		}
		scenario.Eventually(ctx, t, 5*time.Second, "the revoked display is shown as not connected", func() error {
			if online, _ := o.presence(t, ctx, d.id); online {
				return errNotYet
			}
			return nil
		})
	})
}

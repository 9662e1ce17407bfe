package e2e

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/stretchr/testify/require"

	"github.com/marquee-ads/marquee/e2e/scenario"
	"github.com/marquee-ads/marquee/platform/release"
)

// A display is enrolled, plays what it is sent, its plays are counted, and what is
// taken down it shows no more: with the player, and with mosquitto's clients alone.
// All that either knows are the gateways.
func TestEnrolAndPlay(t *testing.T) {
	ctx := begin(t, 3*time.Minute)
	o := newOwner(t, ctx)
	t.Run("Player", func(t *testing.T) { enrolPlayer(t, ctx, o) })
	t.Run("Mosquitto", func(t *testing.T) { enrolMosquitto(t, ctx, o) })
}

// claimCode makes a device, and the code that its player trades.
func (o *owner) claimCode(t *testing.T, ctx context.Context) (id, code string) {
	t.Helper()
	id = o.createDevice(t, ctx, "device-"+ulid.Make().String())
	var made struct{ ClaimCode string }
	o.do(t, ctx, http.MethodPost, o.on("/"+id+"/claim-code"), struct{}{}, &made)
	return id, made.ClaimCode
}

// show has a device play one creative over and over, of which address has the media.
func (o *owner) show(t *testing.T, ctx context.Context, id, creative, address string) {
	t.Helper()
	o.do(t, ctx, http.MethodPut, o.on("/"+id+"/playlist"), map[string]any{"items": []any{map[string]any{
		"creativeId": creative, "url": address, "sha256": address[strings.LastIndexByte(address, '/')+1:], "mediaType": "text/plain", "durationMs": 1000,
	}}}, nil)
}

// takeDown tells a device to show a creative no more, and returns the command's id.
func (o *owner) takeDown(t *testing.T, ctx context.Context, id, creative string) string {
	t.Helper()
	var sent struct{ Command struct{ CommandID string } }
	o.do(t, ctx, http.MethodPost, o.on("/"+id+"/commands"), map[string]string{
		"requestId": "takedown-" + creative, "kind": "COMMAND_KIND_TAKEDOWN", "creativeId": creative,
	}, &sent)
	return sent.Command.CommandID
}

// taken waits until a device has said that it has done as it was told.
func (o *owner) taken(t *testing.T, ctx context.Context, id, command string) time.Duration {
	t.Helper()
	return scenario.Eventually(ctx, t, 10*time.Second, "the takedown is done", func() error {
		var now struct{ Command struct{ State string } }
		if err := o.shared.Call(ctx, http.MethodGet, o.on("/"+id+"/commands/"+command), nil, &now); err != nil {
			return err
		}
		if now.Command.State != "COMMAND_STATE_DONE" {
			return errors.New(now.Command.State)
		}
		return nil
	})
}

func enrolPlayer(t *testing.T, ctx context.Context, o *owner) {
	built, err := release.Build(ctx, "player")
	require.NoError(t, err)
	gateways, _ := bothGateways(t, ctx)
	id, code := o.claimCode(t, ctx)
	args := func(dir, code string) []string {
		return []string{
			"--dir", dir, "--server", gateways[0].Devices + "," + gateways[1].Devices, "--gateway", "http://" + gateways[0].HTTP, "--claim-code", code,
		}
	}
	player := exec.CommandContext(ctx, built["player"].Path, args(t.TempDir(), code)...) //nolint:gosec // our own binary
	player.Stderr = os.Stderr
	out, err := player.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, player.Start())
	ended := false
	t.Cleanup(func() {
		if !ended {
			_ = player.Process.Kill()
			_ = player.Wait() // it was killed
		}
	})
	screen := hears("the player", out)
	scenario.Eventually(ctx, t, 10*time.Second, "the display is shown as connected", func() error {
		if online, _ := o.presence(t, ctx, id); !online {
			return errNotYet
		}
		return nil
	})
	o.show(t, ctx, id, "words", uploadText(t, ctx, o, "words to show"))
	shown := screen.wait(t, 10*time.Second, id, "shows words")
	for range 2 {
		screen.wait(t, 10*time.Second, id, "played words")
	}
	counted := scenario.Eventually(ctx, t, 10*time.Second, "two plays are counted", func() error {
		if _, counted := o.plays(t, ctx, id); counted < 2 {
			return errNotYet
		}
		return nil
	})
	down := o.taken(t, ctx, id, o.takeDown(t, ctx, id, "words"))
	screen.wait(t, 5*time.Second, id, "shows nothing")
	t.Logf("shown %s after the playlist was set, two plays counted %s after they were made, taken down %s after it was said",
		shown.Round(time.Millisecond), counted.Round(time.Millisecond), down.Round(time.Millisecond))
	before, _ := o.plays(t, ctx, id)
	o.show(t, ctx, id, "others", uploadText(t, ctx, o, "other words"))
	screen.wait(t, 10*time.Second, id, "shows others")
	after, _ := o.plays(t, ctx, id)
	require.LessOrEqual(t, after, before+1, "it went on with what was taken down")

	require.NoError(t, player.Process.Signal(syscall.SIGINT))
	require.NoError(t, player.Wait())
	ended = true
	var failed *exec.ExitError
	_, err = exec.CommandContext(ctx, built["player"].Path, args(t.TempDir(), code)...).Output() //nolint:gosec // our own binary
	require.ErrorAs(t, err, &failed)
	require.Equal(t, 4, failed.ExitCode(), "a code is good once: %s", failed.Stderr)
}

func enrolMosquitto(t *testing.T, ctx context.Context, o *owner) {
	for _, tool := range []string{"mosquitto_pub", "mosquitto_sub"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("%s is not installed (Debian: mosquitto-clients)", tool)
		}
	}
	gateways, _ := bothGateways(t, ctx)
	d := o.enrol(t, ctx)
	client := func(gateway int, tool, topic string, args ...string) *exec.Cmd {
		host, port, err := net.SplitHostPort(gateways[gateway].Devices)
		require.NoError(t, err)
		c := exec.CommandContext(ctx, tool, append([]string{"-h", host, "-p", port, "-u", d.id, "-P", d.secret, "-q", "1", "-t", "d/" + d.id + "/" + topic}, args...)...)
		c.Stderr = os.Stderr
		return c
	}
	o.show(t, ctx, d.id, "words", uploadText(t, ctx, o, "words to show"))
	sub := client(0, "mosquitto_sub", "down/#", "-v")
	out, err := sub.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, sub.Start())
	t.Cleanup(func() { _ = sub.Process.Kill() }) // unless it has ended
	heard := hears("mosquitto_sub", out)
	heard.wait(t, 10*time.Second, "d/"+d.id+"/down/playlist", `"version":1,`, `"creative_id":"words"`)
	if online, _ := o.presence(t, ctx, d.id); !online {
		require.Fail(t, "who has its playlist is not shown as connected")
	}
	o.show(t, ctx, d.id, "others", uploadText(t, ctx, o, "other words"))
	heard.wait(t, time.Second, `"version":2,`, `"creative_id":"others"`)
	command := o.takeDown(t, ctx, d.id, "others")
	heard.wait(t, time.Second, "d/"+d.id+"/down/commands", command, `"kind":"TAKEDOWN"`, `"creative_id":"others"`, `"playlist_version":2`)
	require.NoError(t, sub.Process.Kill()) // it would come back, and take over
	_ = sub.Wait()                         // it was killed

	play := fmt.Sprintf(`{"batch_id":"1","plays":[{"id":%q,"creative_id":"others","duration_ms":1000}]}`, ulid.Make())
	for range 2 { // the second time it is a duplicate
		require.NoError(t, client(1, "mosquitto_pub", "up/plays", "-m", play).Run())
	}
	plays, counted := o.plays(t, ctx, d.id)
	require.Equal(t, [2]int64{1, 1}, [2]int64{plays, counted}, "plays, and those of them that count")
	require.NoError(t, client(1, "mosquitto_pub", "up/commands", "-m", fmt.Sprintf(`{"command_id":%q,"result":"DONE"}`, command)).Run())
	o.taken(t, ctx, d.id, command)
}

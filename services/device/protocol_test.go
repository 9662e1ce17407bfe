package device_test

import (
	"encoding/json"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/marquee-ads/marquee/services/device"
	"github.com/marquee-ads/marquee/services/device/player"
)

// TestProtocolDocument holds docs/device-protocol.md to what is so.
func TestProtocolDocument(t *testing.T) {
	raw, err := os.ReadFile("../../docs/device-protocol.md")
	require.NoError(t, err)
	text := string(raw)
	var plays, playlists, commands, replies, texts int
	for _, block := range regexp.MustCompile("(?s)```json\n(.*?)```").FindAllStringSubmatch(text, -1) {
		example := strings.TrimSpace(block[1])
		require.True(t, json.Valid([]byte(example)), example)
		switch {
		case strings.HasPrefix(example, `{"id"`):
			batch := device.ParseBatch("dev_1", []byte(`{"plays":[`+example+`]}`))
			require.Empty(t, batch.Rejected, example)
			plays += len(batch.Plays)
		case strings.Contains(example, `"items"`):
			var p struct {
				Items    []device.Item   `json:"items"`
				Schedule []device.Period `json:"schedule"`
			}
			decoder := json.NewDecoder(strings.NewReader(example))
			require.NoError(t, decoder.Decode(&p))
			require.NotEmpty(t, p.Items)
			require.NotEmpty(t, p.Items[0].CreativeID)
			require.NotEmpty(t, p.Schedule)
			for n, period := range p.Schedule {
				require.True(t, period.From.Before(period.Until))
				require.True(t, n == 0 || p.Schedule[n-1].Until.Before(period.From))
				require.NotEmpty(t, period.Loop)
				for _, place := range period.Loop {
					require.Less(t, place, len(p.Items))
				}
			}
			playlists++
		case strings.Contains(example, `"text"`):
			decoder := json.NewDecoder(strings.NewReader(example))
			decoder.DisallowUnknownFields()
			var shown player.Text
			require.NoError(t, decoder.Decode(&shown))
			require.NotContains(t, []any{shown.Text, shown.Color, shown.Background, shown.Alignment}, "")
			require.Positive(t, shown.SizePercent)
			texts++
		case strings.Contains(example, `"result"`):
			reply, ok := device.ParseReply([]byte(example))
			require.True(t, ok)
			require.Equal(t, device.Done, reply.Result)
			require.Empty(t, reply.Detail)
			replies++
		case strings.Contains(example, `"command_id"`):
			commands++
		}
	}
	require.Equal(t, [5]int{1, 1, 1, 1, 1}, [5]int{plays, playlists, commands, replies, texts}, "the examples of a play, a playlist, a command, a reply and a text")
	require.Contains(t, text, "`"+player.TextType+"`")
	require.Contains(t, text, "A `loop` has at most "+strconv.Itoa(device.MaxSlots)+" places")
	for _, kind := range []device.CommandKind{device.Identify, device.Refresh, device.Takedown, device.Screenshot} {
		require.Contains(t, text, "| `"+string(kind)+"` |")
	}
	require.Contains(t, text, strconv.Itoa(device.MaxImage/1000)+",000 bytes in base64")
	require.Contains(t, text, "are at most "+strconv.Itoa(device.MaxPeriods)+". They are the device's operating hours")
	require.Contains(t, text, "There are at most "+strconv.Itoa(device.MaxOpenCommands)+".")
	for _, reason := range []device.Rejection{device.Malformed, device.UnknownCreative, device.InTheFuture, device.TooOld, device.TooLong} {
		require.Contains(t, text, "| `"+string(reason)+"` |")
	}
	for _, channel := range []string{"down/" + device.ChannelPlaylist, "down/" + device.ChannelPlays, "up/" + device.ChannelPlays, "down/" + device.ChannelCommands, "up/" + device.ChannelCommands} {
		require.Contains(t, text, "`d/<device id>/"+channel+"`")
	}
}

package device_test

import (
	"encoding/json"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/marquee-ads/marquee/services/device"
)

// TestProtocolDocument holds docs/device-protocol.md to what is so.
func TestProtocolDocument(t *testing.T) {
	raw, err := os.ReadFile("../../docs/device-protocol.md")
	require.NoError(t, err)
	text := string(raw)
	var plays, playlists int
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
				Items []device.Item `json:"items"`
			}
			decoder := json.NewDecoder(strings.NewReader(example))
			require.NoError(t, decoder.Decode(&p))
			require.NotEmpty(t, p.Items)
			require.NotEmpty(t, p.Items[0].CreativeID)
			playlists++
		}
	}
	require.Equal(t, [2]int{1, 1}, [2]int{plays, playlists}, "the examples of a play and a playlist")
	for _, reason := range []device.Rejection{device.Malformed, device.UnknownCreative, device.InTheFuture, device.TooOld, device.TooLong} {
		require.Contains(t, text, "| `"+string(reason)+"` |")
	}
	for _, channel := range []string{"down/" + device.ChannelPlaylist, "down/" + device.ChannelPlays, "up/" + device.ChannelPlays} {
		require.Contains(t, text, "`d/<device id>/"+channel+"`")
	}
}

package player

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"regexp"
	"time"

	"github.com/eclipse/paho.golang/paho"
)

const (
	// longestIdentify bounds for how long a display shows which it is.
	longestIdentify = 10 * time.Minute
	// maxAnswered is how many replies are remembered, for commands that come again, and
	// how many wait to be sent: more than a server leaves open.
	maxAnswered = 64
	// maxTakedowns is how many creatives can be taken down: more than a playlist has.
	maxTakedowns = 1000
	maxDetail    = 500
)

// command is what a server tells a player to do.
type command struct {
	ID         string `json:"command_id"`
	Kind       string `json:"kind"`
	DurationMS int64  `json:"duration_ms"`
	CreativeID string `json:"creative_id"`
	// PlaylistVersion is the last in which a creative that is taken down is not shown.
	PlaylistVersion int64 `json:"playlist_version"`
}

// reply is what became of it.
type reply struct {
	CommandID string `json:"command_id"`
	Result    string `json:"result"`
	Detail    string `json:"detail,omitempty"`

	refresh bool // ask for the playlist before
}

const (
	resultDone     = "DONE"
	resultDeclined = "DECLINED"
	resultFailed   = "FAILED"
)

var commandPattern = regexp.MustCompile(`^cmd_[0-9A-Z]{26}$`)

// commanded does what a command says, once, and replies each time that it comes: the
// reply before may not have arrived.
func (d *Display) commanded(payload []byte) {
	var c command
	if err := json.Unmarshal(payload, &c); err != nil || !commandPattern.MatchString(c.ID) {
		d.says("a command is not understood: %.200q", payload)
		return
	}
	d.mu.Lock()
	r, before := d.answered[c.ID]
	d.mu.Unlock()
	if !before {
		r = d.do(c)
		r.CommandID = c.ID
		if len(r.Detail) > maxDetail {
			r.Detail = r.Detail[:maxDetail]
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if !before {
		remembered := r
		remembered.refresh = false
		d.answered[c.ID] = remembered
		d.answeredIDs = append(d.answeredIDs, c.ID)
		if len(d.answeredIDs) > maxAnswered {
			delete(d.answered, d.answeredIDs[0])
			d.answeredIDs = d.answeredIDs[1:]
		}
	}
	// One that finds no room is sent again by the server.
	if len(d.replies) < maxAnswered {
		d.replies = append(d.replies, r)
		signal(d.toReply)
	}
}

func (d *Display) do(c command) reply {
	switch c.Kind {
	case "IDENTIFY":
		duration := time.Duration(min(max(c.DurationMS, 0), longestIdentify.Milliseconds())) * time.Millisecond
		d.update(func(s *Status) { s.Identify = time.Now().Add(duration) })
		d.observer.Identifies(d, duration)
		return reply{Result: resultDone}
	case "REFRESH":
		d.says("it asks for the playlist anew")
		return reply{Result: resultDone, refresh: true}
	case "TAKEDOWN":
		return d.takeDown(c)
	case "SCREENSHOT":
		return reply{Result: resultDeclined, Detail: "a player on a terminal has no picture to send"}
	default:
		return reply{Result: resultDeclined, Detail: fmt.Sprintf("this player does not know the command %.40q", c.Kind)}
	}
}

// takeDown has a creative shown no more in playlists up to a version.
func (d *Display) takeDown(c command) reply {
	if !creativePattern.MatchString(c.CreativeID) {
		return reply{Result: resultFailed, Detail: fmt.Sprintf("the creative id %.80q has other characters than letters, digits, _ and -, or not 1 to 64", c.CreativeID)}
	}
	d.mu.Lock()
	upTo, before := d.takedowns[c.CreativeID]
	full := !before && len(d.takedowns) >= maxTakedowns
	if !full {
		d.takedowns[c.CreativeID] = max(upTo, c.PlaylistVersion)
	}
	d.mu.Unlock()
	if full {
		return reply{Result: resultFailed, Detail: fmt.Sprintf("%d creatives are taken down already", maxTakedowns)}
	}
	signal(d.changed)
	d.says("%s is taken down, until there is a playlist after version %d", c.CreativeID, c.PlaylistVersion)
	if err := d.keepTakedowns(); err != nil {
		d.says("a restart without a network would show %s again: %v", c.CreativeID, err)
		return reply{Result: resultDone, Detail: "until it restarts without a network: what is taken down could not be kept"}
	}
	return reply{Result: resultDone}
}

// takenDown says whether an item of a playlist must not be shown. Whoever calls it
// holds d.mu.
func (d *Display) takenDown(item Item, version int64) bool {
	upTo, ok := d.takedowns[item.CreativeID]
	return ok && version <= upTo
}

// forgetTakedowns removes those that say nothing of a playlist any more.
func (d *Display) forgetTakedowns(version int64) {
	d.mu.Lock()
	before := len(d.takedowns)
	maps.DeleteFunc(d.takedowns, func(_ string, upTo int64) bool { return upTo < version })
	same := len(d.takedowns) == before
	d.mu.Unlock()
	if same {
		return
	}
	if err := d.keepTakedowns(); err != nil {
		d.says("what is taken down could not be kept: %v", err)
	}
}

func (d *Display) keepTakedowns() error {
	d.keeping.Lock()
	defer d.keeping.Unlock()
	d.mu.Lock()
	text, err := json.Marshal(d.takedowns)
	d.mu.Unlock()
	if err != nil {
		return fmt.Errorf("keeping what is taken down: %w", err)
	}
	return keep(d.takedownsPath, text)
}

// readTakedowns returns what was kept: versions by creatives.
func readTakedowns(path string) (map[string]int64, error) {
	kept := make(map[string]int64)
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return kept, nil
	}
	if err == nil {
		err = json.Unmarshal(text, &kept)
	}
	if err != nil {
		return make(map[string]int64), fmt.Errorf("reading what is taken down: %w", err)
	}
	return kept, nil
}

// answer sends replies until ctx ends.
func (d *Display) answer(ctx context.Context, client *paho.Client) {
	for {
		for r, ok := d.nextReply(); ok; r, ok = d.nextReply() {
			// Without it the server sends the command again, on the next connection.
			if err := d.send(ctx, client, r); err != nil && ctx.Err() == nil {
				d.says("the reply to %s is not sent: %v", r.CommandID, err)
			}
		}
		select {
		case <-d.toReply:
		case <-ctx.Done():
			return
		}
	}
}

func (d *Display) nextReply() (reply, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.replies) == 0 {
		return reply{}, false
	}
	r := d.replies[0]
	d.replies = d.replies[1:]
	return r, true
}

func (d *Display) send(ctx context.Context, client *paho.Client, r reply) error {
	if r.refresh {
		d.mu.Lock()
		d.refreshing = true
		d.mu.Unlock()
		if err := d.subscribe(ctx, client); err != nil {
			r.Result, r.Detail = resultFailed, fmt.Sprintf("the playlist could not be asked for: %.200v", err)
		}
	}
	text, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("writing a reply: %w", err)
	}
	if _, err := client.Publish(ctx, &paho.Publish{Topic: "d/" + d.credentials.DeviceID + "/up/commands", QoS: 1, Payload: text}); err != nil {
		return fmt.Errorf("replying: %w", err)
	}
	return nil
}

// subscribe asks for what the server has to say, from the newest playlist on.
func (d *Display) subscribe(ctx context.Context, client *paho.Client) error {
	ctx, cancel := context.WithTimeout(ctx, connectWithin)
	defer cancel()
	if _, err := client.Subscribe(ctx, &paho.Subscribe{
		Subscriptions: []paho.SubscribeOptions{{Topic: "d/" + d.credentials.DeviceID + "/down/#", QoS: 1}},
	}); err != nil {
		return fmt.Errorf("subscribing: %w", err)
	}
	return nil
}

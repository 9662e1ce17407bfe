package device

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"
	"unicode"

	"github.com/marquee-ads/marquee/platform/database"
	"github.com/marquee-ads/marquee/platform/fault"
	"github.com/marquee-ads/marquee/platform/paging"
)

const (
	// CommandLifetime is how long a player may take to answer a command, unless who
	// sends it says otherwise.
	CommandLifetime = 5 * time.Minute
	// TakedownLifetime is the same for a takedown: displays are off at night.
	TakedownLifetime = 24 * time.Hour
	// MaxCommandLifetime bounds what who sends it may say.
	MaxCommandLifetime = 7 * 24 * time.Hour
	// CommandsKept is for how long commands are kept after they expired.
	CommandsKept = 7 * 24 * time.Hour
	// MaxOpenCommands bounds the commands that a device has not answered: together
	// they are fewer than a player may leave unacknowledged.
	MaxOpenCommands = 16
	// MaxImage bounds the picture of a reply, in bytes: in base64 it fits into a
	// packet with the rest of the reply.
	MaxImage = 45_000

	commandPrefix      = "cmd_"
	groupCommandPrefix = "gcm_"
	maxCommandDetail   = 500
	minCommandLifetime = 10 * time.Second
	identifyDuration   = 10 * time.Second
	maxIdentify        = 10 * time.Minute
)

// CommandKind is what a player is told to do.
type CommandKind string

// What players are told to do.
const (
	// Identify is to show for a while which display it is.
	Identify CommandKind = "IDENTIFY"
	// Refresh is to ask for the playlist anew.
	Refresh CommandKind = "REFRESH"
	// Takedown is to show a creative no more, until there is a newer playlist.
	Takedown CommandKind = "TAKEDOWN"
	// Screenshot is to send a picture of what is shown.
	Screenshot CommandKind = "SCREENSHOT"
)

// CommandState is what became of a command.
type CommandState string

// What becomes of commands: the last four stay.
const (
	// Queued waits for its player to connect.
	Queued CommandState = "QUEUED"
	// Sent was handed to a connected player, which has not answered.
	Sent     CommandState = "SENT"
	Done     CommandState = "DONE"
	Declined CommandState = "DECLINED"
	Failed   CommandState = "FAILED"
	// Expired was not answered in time.
	Expired CommandState = "EXPIRED"
)

// Instruction is what somebody wants of a player.
type Instruction struct {
	Kind CommandKind
	// Duration is that of Identify; 0 is 10 seconds.
	Duration time.Duration
	// CreativeID is that of Takedown.
	CreativeID string
	// Lifetime is how long players may take to answer; 0 is what suits the kind.
	Lifetime time.Duration
}

// Command is an instruction to the player of one device.
type Command struct {
	ID       string // "cmd_" and a ULID
	DeviceID string
	// GroupID and GroupCommandID are those of a command to a whole group.
	GroupID, GroupCommandID string
	Kind                    CommandKind
	Duration                time.Duration // of Identify
	CreativeID              string        // of Takedown
	// PlaylistVersion is the newest when a takedown was sent: later ones say
	// themselves what is shown.
	PlaylistVersion int64
	State           CommandState
	// Detail is what the player said to its result, at most 500 bytes.
	Detail string
	// Image is a picture, PNG or JPEG, that came with the reply; lists leave it out.
	Image      []byte
	CreateTime time.Time
	ExpireTime time.Time
	// SendTime is when it was first handed to a connected player, and ReplyTime when
	// that answered; zero before.
	SendTime, ReplyTime time.Time
}

// GroupCommand is an instruction to the players of all devices that were in a group.
type GroupCommand struct {
	ID         string // "gcm_" and a ULID
	GroupID    string
	Kind       CommandKind
	Duration   time.Duration // of Identify
	CreativeID string        // of Takedown
	CreateTime time.Time
	ExpireTime time.Time
	// Devices is how many there were, and States how many commands are in each.
	Devices int
	States  map[CommandState]int
}

// What callers that send commands are told.
var (
	ErrInstruction     = fault.New(fault.InvalidArgument, "VALIDATION_FAILED", "the command is not possible")
	ErrCommandNotFound = fault.New(fault.NotFound, "COMMAND_NOT_FOUND", "there is no such command, or it expired more than 7 days ago")
	ErrTooManyCommands = fault.New(fault.FailedPrecondition, "TOO_MANY_COMMANDS", "the device has %d commands that its player has not answered: wait for it, or until they expire", MaxOpenCommands)
)

// DetailTooManyCommands is why a command to a group fails for a device at once.
const DetailTooManyCommands = "not sent: the device has too many commands that its player has not answered"

// CommandStore keeps the commands that are sent to devices; it is a part of Store.
type CommandStore interface {
	// CreateCommand stores a command and has it sent, unless the request came before:
	// then it returns the one that was made. It says which playlist version is the
	// newest. Errors: ErrRequestIDReused, ErrTooManyCommands.
	CreateCommand(ctx context.Context, r Request, organisationID string, c Command) (Command, error)
	// CreateGroupCommand does so for each device of a group, with ids that newID
	// makes. Errors: ErrRequestIDReused, ErrGroupNotFound, ErrGroupEmpty.
	CreateGroupCommand(ctx context.Context, r Request, organisationID string, g GroupCommand, newID func() (string, error)) (GroupCommand, error)
	// FindCommand returns a command as it is at a time. Errors: ErrCommandNotFound.
	FindCommand(ctx context.Context, organisationID, deviceID, id string, now time.Time) (Command, error)
	// ListCommands returns up to limit commands whose id is less than before ("" is no
	// bound), the greatest first.
	ListCommands(ctx context.Context, organisationID, deviceID, before string, limit int, now time.Time) ([]Command, error)
	// FindGroupCommand counts its commands by their states at a time. Errors:
	// ErrCommandNotFound.
	FindGroupCommand(ctx context.Context, organisationID, groupID, id string, now time.Time) (GroupCommand, error)
}

// CommandQueue is what the plane does with commands; it is a part of PlaneStore.
type CommandQueue interface {
	// OpenCommands are those that the players of devices have not answered in time
	// yet, the oldest first, and OpenGroupCommands those of one command to a group.
	OpenCommands(ctx context.Context, deviceIDs []string, now time.Time) ([]Command, error)
	OpenGroupCommands(ctx context.Context, groupCommandID string, now time.Time) ([]Command, error)
	// CommandsSent says that these were handed to connected players.
	CommandsSent(ctx context.Context, commandIDs []string, now time.Time) error
	// StoreReply stores what a device's player said to a command and returns what it
	// became, "" when the device has no such command that is open: then nothing
	// changes.
	StoreReply(ctx context.Context, deviceID string, r Reply, now time.Time) (CommandState, error)
}

// completed is an instruction with what it leaves open, or an error that names what
// is not possible about it. Errors: ErrInstruction.
func (i Instruction) completed() (Instruction, error) {
	switch i.Kind {
	case Identify, Refresh, Takedown, Screenshot:
	default:
		return i, ErrInstruction.WithField("kind", "kind.known", "is none of IDENTIFY, REFRESH, TAKEDOWN and SCREENSHOT")
	}
	if i.Kind != Identify && i.Duration != 0 {
		return i, ErrInstruction.WithField("duration_seconds", "duration.identify", "belongs to IDENTIFY alone: leave it out")
	}
	if i.Kind == Identify && i.Duration == 0 {
		i.Duration = identifyDuration
	}
	if i.Duration < 0 || i.Duration > maxIdentify {
		return i, ErrInstruction.WithField("duration_seconds", "duration.range", "is not from 1 to 600")
	}
	if i.Kind != Takedown && i.CreativeID != "" {
		return i, ErrInstruction.WithField("creative_id", "creative.takedown", "belongs to TAKEDOWN alone: leave it out")
	}
	if i.Kind == Takedown && !creativePattern.MatchString(i.CreativeID) {
		return i, ErrInstruction.WithField("creative_id", "creative.needed", "is needed for TAKEDOWN: 1 to 64 letters, digits, _ and -")
	}
	if i.Lifetime == 0 {
		i.Lifetime = CommandLifetime
		if i.Kind == Takedown {
			i.Lifetime = TakedownLifetime
		}
	}
	if i.Lifetime < minCommandLifetime || i.Lifetime > MaxCommandLifetime {
		return i, ErrInstruction.WithField("lifetime_seconds", "lifetime.range", "is not from 10 to 604800")
	}
	return i, nil
}

// SendCommand sends an instruction to the player of a device: at once when it is
// connected, else when it is. Errors: ErrInstruction, ErrNotFound,
// ErrRequestIDReused, ErrTooManyCommands.
func (s *Service) SendCommand(ctx context.Context, callerID, requestID, organisationID, deviceID string, i Instruction) (Command, error) {
	i, err := i.completed()
	if err != nil {
		return Command{}, err
	}
	now := s.moment()
	r, err := newRequest(callerID, requestID, struct {
		Method, OrganisationID, DeviceID string
		Instruction                      Instruction
	}{"SendCommand", organisationID, deviceID, i}, now)
	if err != nil {
		return Command{}, err
	}
	id, err := s.newID(commandPrefix, now)
	if err != nil {
		return Command{}, err
	}
	made, err := s.store.CreateCommand(ctx, r, organisationID, Command{
		ID: id, DeviceID: deviceID, Kind: i.Kind, Duration: i.Duration, CreativeID: i.CreativeID, CreateTime: now, ExpireTime: now.Add(i.Lifetime),
	})
	if err != nil {
		return Command{}, fmt.Errorf("sending a command: %w", err)
	}
	return made, nil
}

// SendGroupCommand sends an instruction to the players of all devices that are in a
// group now. Errors: ErrInstruction, ErrGroupNotFound, ErrGroupEmpty,
// ErrRequestIDReused.
func (s *Service) SendGroupCommand(ctx context.Context, callerID, requestID, organisationID, groupID string, i Instruction) (GroupCommand, error) {
	i, err := i.completed()
	if err != nil {
		return GroupCommand{}, err
	}
	now := s.moment()
	r, err := newRequest(callerID, requestID, struct {
		Method, OrganisationID, GroupID string
		Instruction                     Instruction
	}{"SendGroupCommand", organisationID, groupID, i}, now)
	if err != nil {
		return GroupCommand{}, err
	}
	id, err := s.newID(groupCommandPrefix, now)
	if err != nil {
		return GroupCommand{}, err
	}
	made, err := s.store.CreateGroupCommand(ctx, r, organisationID, GroupCommand{
		ID: id, GroupID: groupID, Kind: i.Kind, Duration: i.Duration, CreativeID: i.CreativeID, CreateTime: now, ExpireTime: now.Add(i.Lifetime),
	}, func() (string, error) { return s.newID(commandPrefix, now) })
	if err != nil {
		return GroupCommand{}, fmt.Errorf("sending a command to a group: %w", err)
	}
	return made, nil
}

// FindCommand returns a command with what became of it. Errors: ErrNotFound,
// ErrCommandNotFound.
func (s *Service) FindCommand(ctx context.Context, organisationID, deviceID, id string) (Command, error) {
	return s.store.FindCommand(ctx, organisationID, deviceID, id, s.moment())
}

// ListCommands returns a page of a device's commands, the newest first. Errors:
// ErrNotFound, paging.ErrTokenInvalid.
func (s *Service) ListCommands(ctx context.Context, organisationID, deviceID string, page paging.Page) ([]Command, string, error) {
	of := "commands of " + deviceID
	return paging.List(ctx, of, page, func(ctx context.Context, before string, limit int) ([]Command, error) {
		return s.store.ListCommands(ctx, organisationID, deviceID, before, limit, s.moment())
	}, func(c Command) string { return c.ID })
}

// FindGroupCommand returns a command to a group with what became of it. Errors:
// ErrCommandNotFound.
func (s *Service) FindGroupCommand(ctx context.Context, organisationID, groupID, id string) (GroupCommand, error) {
	return s.store.FindGroupCommand(ctx, organisationID, groupID, id, s.moment())
}

// document is the command as players get it.
func (c Command) document() ([]byte, error) {
	message := struct {
		ID              string      `json:"command_id"`
		Kind            CommandKind `json:"kind"`
		DurationMS      int64       `json:"duration_ms,omitempty"`
		CreativeID      string      `json:"creative_id,omitempty"`
		PlaylistVersion *int64      `json:"playlist_version,omitempty"`
	}{ID: c.ID, Kind: c.Kind, DurationMS: c.Duration.Milliseconds(), CreativeID: c.CreativeID}
	if c.Kind == Takedown {
		message.PlaylistVersion = &c.PlaylistVersion
	}
	text, err := json.Marshal(message)
	if err != nil {
		return nil, fmt.Errorf("writing a command: %w", err)
	}
	return text, nil
}

// Reply is what a player says to a command.
type Reply struct {
	CommandID string
	Result    CommandState // Done, Declined or Failed
	Detail    string
	Image     []byte // PNG or JPEG
}

var commandIDPattern = regexp.MustCompile(`^cmd_[0-7][0-9A-HJKMNP-TV-Z]{25}$`)

// ParseReply reads a message. ok is false for one that names no command; one that
// does, and is wrong otherwise, has failed.
func ParseReply(text []byte) (r Reply, ok bool) {
	var message struct {
		CommandID string `json:"command_id"`
		Result    string `json:"result"`
		Detail    string `json:"detail"`
		Image     string `json:"image"`
	}
	if err := json.Unmarshal(text, &message); err != nil || !commandIDPattern.MatchString(message.CommandID) {
		return Reply{}, false
	}
	r = Reply{CommandID: message.CommandID, Result: CommandState(message.Result), Detail: message.Detail}
	switch r.Result {
	case Done, Declined, Failed:
	default:
		r.Result, r.Detail = Failed, fmt.Sprintf("the player's result %.40q is none of DONE, DECLINED and FAILED", message.Result)
	}
	if message.Image != "" {
		var problem string
		if r.Image, problem = imageOf(message.Image); problem != "" {
			r.Result, r.Detail = Failed, "the player's image "+problem
		}
	}
	r.Detail = clip(strings.Map(func(c rune) rune {
		if unicode.IsControl(c) {
			return ' '
		}
		return c
	}, r.Detail), maxCommandDetail)
	return r, true
}

// ImageType is the media type of a picture, "" when it is neither PNG nor JPEG.
func ImageType(image []byte) string {
	switch {
	case bytes.HasPrefix(image, []byte("\x89PNG\r\n\x1a\n")):
		return "image/png"
	case bytes.HasPrefix(image, []byte("\xff\xd8\xff")):
		return "image/jpeg"
	}
	return ""
}

func imageOf(text string) (image []byte, problem string) {
	image, err := base64.StdEncoding.DecodeString(text)
	switch {
	case err != nil:
		return nil, "is not base64"
	case len(image) > MaxImage:
		return nil, fmt.Sprintf("has %d bytes: at most %d are taken", len(image), MaxImage)
	case ImageType(image) == "":
		return nil, "is neither PNG nor JPEG"
	}
	return image, ""
}

// sendOpenCommands sends what a player has not answered, when it begins to listen.
func (p *Plane) sendOpenCommands(ctx context.Context, c *connection) {
	c.commands.Lock()
	c.commands.listens = true
	c.commands.Unlock()
	open, err := p.store.OpenCommands(ctx, []string{c.session.DeviceID()}, p.moment())
	if err != nil {
		p.log.Warn("commands could not be sent", "device", c.session.DeviceID(), "error", err)
		c.session.End(EndBusy)
		return
	}
	p.sendCommands(ctx, open)
}

// commandsChanged sends what a change says was sent to devices.
func (p *Plane) commandsChanged(ctx context.Context, change Change) {
	var open []Command
	var err error
	if change.Kind == GroupCommandSent {
		// One message, and one query, for all devices of the group.
		open, err = p.store.OpenGroupCommands(ctx, change.GroupCommandID, p.moment())
	} else {
		open, err = p.store.OpenCommands(ctx, []string{change.DeviceID}, p.moment())
	}
	if err != nil {
		p.log.Warn("commands could not be sent yet", "device", change.DeviceID, "group_command", change.GroupCommandID, "error", err)
		p.mu.Lock()
		p.unsure = true // looks again, soon
		p.mu.Unlock()
		return
	}
	p.sendCommands(ctx, open)
}

// sendCommands hands commands to those of their players that listen here.
func (p *Plane) sendCommands(ctx context.Context, commands []Command) {
	now := p.moment()
	var sent []string
	for _, command := range commands {
		c := p.connectionOf(command.DeviceID, "")
		if c == nil {
			continue
		}
		switch did, err := c.sendCommand(command, now); {
		case err != nil:
			p.log.Warn("a command could not be sent", "device", command.DeviceID, "command", command.ID, "error", err)
			c.session.End(EndBusy) // it is sent again when the player is back
		case did:
			sent = append(sent, command.ID)
		}
	}
	if len(sent) == 0 {
		return
	}
	p.metrics.commands.WithLabelValues("sent").Add(float64(len(sent)))
	if err := p.store.CommandsSent(ctx, sent, now); err != nil {
		p.log.Warn("commands were sent, and still look queued", "commands", len(sent), "error", err)
	}
}

// sendCommand sends a command, once on a connection.
func (c *connection) sendCommand(command Command, now time.Time) (did bool, err error) {
	c.commands.Lock()
	defer c.commands.Unlock()
	if _, before := c.commands.sent[command.ID]; before || !c.commands.listens {
		return false, nil
	}
	text, err := command.document()
	if err != nil {
		return false, err
	}
	if err := c.session.Send(ChannelCommands, text); err != nil {
		return false, fmt.Errorf("sending it: %w", err)
	}
	for id, expires := range c.commands.sent {
		if !expires.After(now) {
			delete(c.commands.sent, id)
		}
	}
	if c.commands.sent == nil {
		c.commands.sent = make(map[string]time.Time)
	}
	c.commands.sent[command.ID] = command.ExpireTime
	return true, nil
}

// replied stores what a player said to a command. What it said to anything else than
// an open command of its own changes nothing, and is acknowledged.
func (p *Plane) replied(ctx context.Context, session Session, payload []byte) error {
	id := session.DeviceID()
	r, ok := ParseReply(payload)
	if !ok {
		p.metrics.commands.WithLabelValues("ignored").Inc()
		p.log.Debug("a reply names no command", "device", id)
		return nil
	}
	var became CommandState
	err := patiently(ctx, time.Now().Add(storeWithin), func() (err error) {
		became, err = p.store.StoreReply(ctx, id, r, p.moment())
		return err
	})
	switch {
	case err != nil && (ctx.Err() != nil || errors.Is(err, database.ErrUnavailable)):
		return fmt.Errorf("storing a reply of %s: %w", id, err)
	case err != nil:
		// It would be so each time: the command expires.
		p.log.Error("a reply could not be stored", "device", id, "command", r.CommandID, "error", err)
		return nil
	case became == "":
		p.metrics.commands.WithLabelValues("ignored").Inc()
		p.log.Debug("a reply is to no open command of the device", "device", id, "command", r.CommandID)
	default:
		p.metrics.commands.WithLabelValues(strings.ToLower(string(became))).Inc()
	}
	if c := p.connectionOf(id, session.ID()); c != nil {
		c.commands.Lock()
		delete(c.commands.sent, r.CommandID)
		c.commands.Unlock()
	}
	return nil
}

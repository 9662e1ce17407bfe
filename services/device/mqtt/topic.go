package mqtt

import "strings"

// Topics of a device: d/<device id>/down/<channel> is what it reads, and
// d/<device id>/up/<channel> what it writes.
const (
	root = "d/"
	down = "/down/"
	up   = "/up/"
)

func downTopic(deviceID, channel string) string { return root + deviceID + down + channel }

// mayRead says whether a device may subscribe to a filter: what begins with its
// own prefix, spelt out. Wildcards come after it, so that they stay inside.
func mayRead(deviceID, filter string) bool {
	channel, ok := strings.CutPrefix(filter, root+deviceID+down)
	return ok && channel != "" && deviceID != ""
}

// upChannel is the channel that a device writes to, if it may write to the topic.
func upChannel(deviceID, topic string) (string, bool) {
	channel, ok := strings.CutPrefix(topic, root+deviceID+up)
	return channel, ok && channel != "" && deviceID != "" && !strings.ContainsAny(channel, "+#")
}

// listensTo says whether a filter that the device may read takes in a channel.
func listensTo(deviceID, filter, channel string) bool {
	rest, ok := strings.CutPrefix(filter, root+deviceID+down)
	return ok && (rest == channel || rest == "#" || rest == "+" || rest == channel+"/#")
}

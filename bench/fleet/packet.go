package fleet

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// Types of packets, as MQTT 3.1.1 (2.2.1) numbers them.
const (
	connectPacket    = 1
	connackPacket    = 2
	publishPacket    = 3
	pubackPacket     = 4
	subscribePacket  = 8
	subackPacket     = 9
	disconnectPacket = 14
)

const (
	// maxPacket is more than any of the brokers is asked to send, in bytes.
	maxPacket = 256 << 10
	// keepAlive, in seconds, is longer than any connection is idle here: a ping
	// would be counted as work of the broker.
	keepAlive = 300
)

var errPacket = errors.New("the broker sent what is no MQTT 3.1.1 packet")

// packet is one on the wire.
func packet(kind, flags byte, body []byte) []byte {
	p := []byte{kind<<4 | flags}
	for left := len(body); ; {
		digit := byte(left & 0x7f)
		if left >>= 7; left == 0 {
			return append(append(p, digit), body...)
		}
		p = append(p, digit|0x80)
	}
}

// appendText appends text with its length before it.
func appendText(b []byte, text string) []byte {
	return append(binary.BigEndian.AppendUint16(b, uint16(len(text))), text...)
}

func connect(id string, l Login) []byte {
	const userPasswordAndCleanSession = 0x80 | 0x40 | 0x02
	b := appendText(nil, "MQTT")
	b = binary.BigEndian.AppendUint16(append(b, 4, userPasswordAndCleanSession), keepAlive)
	return packet(connectPacket, 0, appendText(appendText(appendText(b, id), l.User), l.Password))
}

func subscribe(id uint16, filter string, qos byte) []byte {
	const reserved = 0x02
	return packet(subscribePacket, reserved, append(appendText(binary.BigEndian.AppendUint16(nil, id), filter), qos))
}

// publish has the id only at QoS 1.
func publish(id uint16, topic string, qos byte, payload []byte) []byte {
	b := appendText(nil, topic)
	if qos > 0 {
		b = binary.BigEndian.AppendUint16(b, id)
	}
	return packet(publishPacket, qos<<1, append(b, payload...))
}

func puback(id uint16) []byte {
	return packet(pubackPacket, 0, binary.BigEndian.AppendUint16(nil, id))
}

// readPacket reads the next packet; its body is in room where that is enough.
func readPacket(from *bufio.Reader, room []byte) (kind, flags byte, body []byte, err error) {
	first, err := from.ReadByte()
	if err != nil {
		return 0, 0, nil, err
	}
	length := 0
	for shift := 0; ; shift += 7 {
		digit, err := from.ReadByte()
		if err != nil {
			return 0, 0, nil, err
		}
		length |= int(digit&0x7f) << shift
		if digit&0x80 == 0 {
			break
		}
		if shift == 21 {
			return 0, 0, nil, fmt.Errorf("%w: its length has more than four bytes", errPacket)
		}
	}
	if length > maxPacket {
		return 0, 0, nil, fmt.Errorf("%w: it has %d bytes, more than %d", errPacket, length, maxPacket)
	}
	if length > len(room) {
		room = make([]byte, length)
	}
	if _, err := io.ReadFull(from, room[:length]); err != nil {
		return 0, 0, nil, err
	}
	return first >> 4, first & 0x0f, room[:length], nil
}

// message is what a PUBLISH carries; its id is 0 at QoS 0.
type message struct {
	id      uint16
	topic   string
	payload []byte
}

func parsePublish(flags byte, body []byte) (m message, err error) {
	if len(body) < 2 {
		return m, errPacket
	}
	end := 2 + int(binary.BigEndian.Uint16(body))
	if len(body) < end {
		return m, errPacket
	}
	m.topic, m.payload = string(body[2:end]), body[end:]
	if flags>>1&3 > 0 {
		if len(m.payload) < 2 {
			return m, errPacket
		}
		m.id, m.payload = binary.BigEndian.Uint16(m.payload), m.payload[2:]
	}
	return m, nil
}

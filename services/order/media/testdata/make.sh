#!/bin/sh
# Makes the files beside it with ffmpeg 9: what encoders write that tests do not.
set -eu
cd "$(dirname "$0")"
f() { ffmpeg -y -v error -bitexact "$@"; }

source='-f lavfi -i testsrc=size=64x48:rate=10:duration=2'
sound='-f lavfi -i sine=duration=2 -b:a 16k -ac 1'
# shellcheck disable=SC2086 # they are several words
{
	f $source $sound -c:v libx264 -pix_fmt yuv420p end.mp4
	f $source -c:v libx264 -pix_fmt yuv420p -movflags faststart front.mp4
	f $source $sound -c:v libx264 -pix_fmt yuv420p -g 5 -movflags frag_keyframe+empty_moov+default_base_moof fragments.mp4
	f -display_rotation 90 -i front.mp4 -c copy turned.mp4
	f $sound sound.mp4
	f $source $sound -c:v libvpx -b:v 20k plain.webm
	f $source -c:v libvpx -b:v 20k -f webm -live 1 pipe:1 >live.webm
	f $sound -c:a libopus sound.webm
	f $source -c:v libx264 -pix_fmt yuv420p other.mkv
	f $source -frames:v 1 -c:v libwebp lossy.webp
	f $source -frames:v 1 -c:v libwebp -lossless 1 lossless.webp
	f $source -frames:v 1 -vf format=yuva420p,colorchannelmixer=aa=0.5 -c:v libwebp alpha.webp
	f $source -frames:v 3 -c:v libwebp_anim animated.webp
	f $source -frames:v 3 -f apng animated.png
	f $source -frames:v 5 animated.gif
}

#!/usr/bin/env bash
# Makes the three files the sandbox serves as generated media: clip.mp4, thumbnail.jpg and last_frame.jpg.
#
# They are drawn by ffmpeg's own test source, so nobody else's picture is shipped, and they are committed, so
# nothing needs ffmpeg to run. Run it again only to change them (Debian: apt-get install ffmpeg); the encoder
# runs on one thread and no date is written, so that the same ffmpeg makes the same bytes. The clip's width,
# height and duration are constants in sandbox/media.py, and a test compares them with the file.
set -euo pipefail

cd "$(dirname "$0")/../airflow_provider_luma/sandbox/media_files"

quiet=(ffmpeg -nostdin -hide_banner -loglevel error -y)
bare=(-map_metadata -1 -fflags +bitexact -flags:v +bitexact)

"${quiet[@]}" -f lavfi -i testsrc2=size=640x360:rate=24:duration=2 \
    -c:v libx264 -profile:v main -preset veryslow -crf 30 -pix_fmt yuv420p -threads 1 \
    "${bare[@]}" -movflags +faststart clip.mp4
"${quiet[@]}" -i clip.mp4 -vf "select=eq(n\,0)" -frames:v 1 -q:v 5 "${bare[@]}" thumbnail.jpg
"${quiet[@]}" -i clip.mp4 -vf "select=eq(n\,47)" -frames:v 1 -q:v 5 "${bare[@]}" last_frame.jpg
ls -l clip.mp4 thumbnail.jpg last_frame.jpg

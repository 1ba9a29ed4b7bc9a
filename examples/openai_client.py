"""Asks about a picture with the official openai client: `pip install openai`.

make up
python examples/openai_client.py examples/shapes.png "What is in the picture?"
"""

from __future__ import annotations

import argparse
import base64
import mimetypes
from pathlib import Path

from openai import OpenAI


def main() -> None:
    """Reads the command line and writes the answer as it comes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("image", type=Path)
    parser.add_argument("question")
    parser.add_argument("--url", default="http://127.0.0.1:8000/v1")
    options = parser.parse_args()

    client = OpenAI(base_url=options.url, api_key="none")
    kind = mimetypes.guess_type(options.image)[0]
    picture = base64.b64encode(options.image.read_bytes()).decode()
    stream = client.chat.completions.create(
        model=client.models.list().data[0].id,
        messages=[
            {
                "role": "user",
                "content": [
                    {"type": "image_url", "image_url": {"url": f"data:{kind};base64,{picture}"}},
                    {"type": "text", "text": options.question},
                ],
            }
        ],
        stream=True,
    )
    for chunk in stream:
        if chunk.choices:
            print(chunk.choices[0].delta.content or "", end="", flush=True)
    print()


if __name__ == "__main__":
    main()

"""Package metadata, read from settings.ini: the one place that states it."""

import re
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
config = ConfigParser(delimiters=["="])
config.read(here / "settings.ini", encoding="utf-8")
settings = config["DEFAULT"]
extras = dict(line.split("=", 1) for line in settings["extras"].splitlines()) | {"dev": settings["dev_requirements"]}
readme = (here / "README.md").read_text(encoding="utf-8")  # other sites show it too, so its links name the repository
readme = re.sub(r"!\[([^]]*)\]\((?!http)", rf"![\1]({settings['git_url']}/raw/main/", readme)
readme = re.sub(r"(?<!!)\[([^]]*)\]\((?!http|#)", rf"[\1]({settings['git_url']}/blob/main/", readme)

setup(
    name=settings["lib_name"],
    version=settings["version"],
    description=settings["description"],
    long_description=readme,
    long_description_content_type="text/markdown",
    author=settings["author"],
    url=settings["git_url"],
    license="Apache-2.0",
    keywords=settings["keywords"],
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
    packages=find_packages(include=["rethink_imagenet", "rethink_imagenet.*"]),
    package_data={"rethink_imagenet": ["py.typed", "__init__.pyi"]},
    python_requires=f">={settings['min_python']}",
    install_requires=settings["requirements"].split(),
    extras_require={name: requirements.split() for name, requirements in extras.items()},
    entry_points={
        "console_scripts": settings["console_scripts"].split(),
        "nbdev": [f"{settings['lib_path']}={settings['lib_path']}._modidx:d"],
    },
    zip_safe=False,
)

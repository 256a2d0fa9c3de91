"""An S3 server whose users may do what deploy/'s policies say, and nothing else."""

import json
from collections.abc import Mapping, Sequence

from demo.servers import S3Server
from tests.test_units import DEPLOY


class S3WithUsers(S3Server):
    """`users` by name, each with the policies of deploy/ that it has, for one bucket."""

    bucket = "shop-backups"
    users: Mapping[str, Sequence[str]] = {
        "night": ["s3-policy.json"],
        "cleaner": ["s3-policy.json", "s3-policy-cleanup.json"],
    }

    def environment_of(self, user: str) -> dict[str, str]:
        """The variables by which a program is that user."""
        keys = {"AWS_ACCESS_KEY_ID": f"{user}-key", "AWS_SECRET_ACCESS_KEY": f"{user}-secret"}
        return {**self.environment(), **keys, "AWS_S3_BUCKET": self.bucket}

    def _prepare(self) -> None:
        super()._prepare()
        config = self.data_dir / "s3.json"
        said = json.loads(config.read_text())
        for user, policies in self.users.items():
            keys = {"accessKey": f"{user}-key", "secretKey": f"{user}-secret"}
            identity = {"name": user, "credentials": [keys], "actions": [], "policyNames": policies}
            said["identities"].append(identity)
        said["policies"] = [
            {"name": name, "content": (DEPLOY / name).read_text().replace("YOUR-BUCKET", self.bucket)}
            for name in ("s3-policy.json", "s3-policy-cleanup.json")
        ]
        config.write_text(json.dumps(said))

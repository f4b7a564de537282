"""All rules of a recipe."""

from samepath.rl.alerts.bookkeeping import bookkeeping_rules
from samepath.rl.alerts.learning import learning_rules
from samepath.rl.alerts.policy import policy_rules
from samepath.rl.alerts.rewards import reward_rules
from samepath.rl.alerts.rule import Rule
from samepath.rl.recipe.recipe import Recipe


def rules_of(recipe: Recipe) -> list[Rule]:
    """Those that the recipe has not switched off and that can say something of it, new, with nothing seen yet."""
    made = [*bookkeeping_rules(recipe), *learning_rules(recipe), *policy_rules(recipe), *reward_rules(recipe)]
    return [rule for rule in made if getattr(recipe.alerts, rule.name)]
